"""Check and decode the dataset's shards into arrays that every later step reads, and fit their Gaussian prior."""

import logging
from pathlib import Path

from tqdm import tqdm

from components.data.prior import fit_prior
from components.params import Params
from components.paths import STAGED
from invfusion.data.manifest import read_manifest
from invfusion.data.staging import Progress, stage_dataset

log = logging.getLogger(__name__)


def stage(params: Params) -> Path:
    """Bring artifacts/staged up to date with the dataset that params.data names; returns that folder.

    Raises:
        ConfigError: there are too few training images for the rank of their Gaussian prior.
        DataError: a shard, an image or the manifest is missing, damaged or inconsistent. What could be staged is kept.
    """
    n_current = 0
    total = sum(entry.n_samples for entry in read_manifest(params.data.shards).shards)
    with tqdm(total=total, desc="stage", unit="image") as bar:

        def advance(progress: Progress) -> None:
            nonlocal n_current
            n_current += progress.was_current
            bar.update(progress.n_samples)

        data = params.data
        staged = stage_dataset(data.shards, STAGED, data.image_size, advance, max_skipped=data.max_skipped)
    if params.data.gaussian_prior is not None:
        fit_prior(STAGED, params.data.gaussian_prior)
    counts = ", ".join(f"{split} {count}" for split, count in staged.n_samples.items())
    log.info("%s: %s; %d shards were already staged", staged.name, counts, n_current)
    return STAGED
