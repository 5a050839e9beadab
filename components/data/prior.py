"""The Gaussian prior of the staged training images, kept beside them."""

import json
import logging
from pathlib import Path

from components.params import PriorFitConfig
from invfusion.codec import decode
from invfusion.data import StagedDataset
from invfusion.errors import CheckpointError, DataError
from invfusion.files import write_text
from invfusion.gaussian import GaussianPrior

log = logging.getLogger(__name__)

PRIOR, FACTS = "prior.safetensors", "prior.json"


def fit_prior(staged: Path, settings: PriorFitConfig) -> Path:
    """Fit <staged>/prior.safetensors to the training images, unless the same was done before; returns its path.

    Raises:
        ConfigError: there are too few training images for the rank.
    """
    dataset = StagedDataset(staged, "train")
    facts = json.dumps({"data": dataset.digest, "settings": settings.model_dump(mode="json")}, indent=1) + "\n"
    path, written = staged / PRIOR, staged / FACTS
    if path.is_file() and written.is_file() and written.read_text() == facts:
        return path
    written.unlink(missing_ok=True)
    images = decode(dataset.read(range(min(len(dataset), settings.max_images))))
    prior = GaussianPrior.fit(images, data=dataset.digest, **settings.model_dump(exclude={"max_images"}))
    prior.save(path)
    write_text(written, facts)
    log.info("a Gaussian prior (%s) of %d images: %s", settings.form, len(images), path)
    return path


def staged_prior(staged: Path) -> GaussianPrior:
    """The prior that was fitted at staging. Raises `DataError` where there is none."""
    try:
        return GaussianPrior.load(staged / PRIOR)
    except CheckpointError as error:
        raise DataError(f"{error}; set data.gaussian_prior and run the stage step again") from None
