"""A workplace for the training components: staged noise, a tiny architecture, the project's parameters made small."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components import tracking
from components.data.prior import fit_prior
from components.params import Params, PriorFitConfig
from components.profiles import load_profile
from components.training.train import STAGED
from invfusion.data.manifest import MANIFEST
from invfusion.data.staged import StagedManifest, StagedShard
from invfusion.models import PRESETS, DenoiserConfig, LevelConfig
from invfusion.rng import generator

PROJECT = Path(__file__).parents[2]
SIZE, N = 8, 24
ARCHITECTURE = DenoiserConfig(
    image_size=SIZE,
    patch_size=2,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_hidden=16,
    mapping_depth=1,
)


def stage_noise() -> None:
    """Random images as staged train and val splits, with their Gaussian prior."""
    for split in ("train", "val"):
        folder = STAGED / split
        folder.mkdir(parents=True)
        pixels = torch.randint(256, (N, 3, SIZE, SIZE), generator=generator(0, split)).to(torch.uint8)
        np.save(folder / f"{split}-000000.npy", pixels.numpy())
        keys = [f"{split}-{i:02d}" for i in range(N)]
        sidecar = StagedShard(source="", source_sha256="", pixels_sha256=split, keys=keys, labels=[-1] * N)
        (folder / f"{split}-000000.json").write_text(sidecar.model_dump_json())
    manifest = StagedManifest(
        name="noise", image_size=SIZE, channels=3, class_names=[], n_samples={"train": N, "val": N},
        digests={"train": "", "val": ""}, shards={"train": ["train-000000"], "val": ["val-000000"]},
    )  # fmt: skip
    (STAGED / MANIFEST).write_text(manifest.model_dump_json())
    fit_prior(STAGED, PriorFitConfig(rank=8))


def make_params(**train: Any) -> Params:
    """The project's own parameters, made small; `train` changes that section."""
    base = load_profile()
    small = {"images": 48, "batch_size": 8, "micro_batch_size": 4, "warmup_images": 8, "checkpoint_images": 16}
    often = {"log_images": 16, "sample_grid_images": 48}
    short = {"images": 16, "warmup_images": 0}
    from_invfusion = {"distilled": {"mmse": "invfusion", "nppc": "invfusion"}}
    return base.model_copy(
        update={
            "data": base.data.model_copy(update={"image_size": SIZE}),
            "model": base.model.model_copy(update={"preset": "tiny"}),
            "train": base.train.model_copy(update=small | often | from_invfusion | train),
            "recipes": base.recipes.model_copy(
                update={
                    "mmse": base.recipe("mmse").model_copy(update=short),
                    "nppc": base.recipe("nppc").model_copy(update=short),
                }
            ),
            "runtime": base.runtime.model_copy(update={"device": "cpu"}),
        }
    )


class RecordingRun(tracking.Run):
    """Remembers what was sent, and how the run ended."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.images: list[tuple[str, int, np.ndarray]] = []
        self.status = "RUNNING"

    def log_metrics(self, metrics: Mapping[str, float], nimg: int = 0) -> None:
        self.metrics.append((nimg, dict(metrics)))

    def log_image(self, name: str, image: Path | np.ndarray, nimg: int = 0) -> None:
        assert isinstance(image, np.ndarray)
        self.images.append((name, nimg, image))


@contextmanager
def workplace(folder: Path) -> Iterator[list[RecordingRun]]:
    """Work in `folder` on one thread, with staged data, the preset "tiny", and a tracker that remembers."""
    runs: list[RecordingRun] = []

    @contextmanager
    def start_run(*_: object) -> Iterator[RecordingRun]:
        runs.append(RecordingRun())
        try:
            yield runs[-1]
        except BaseException:
            runs[-1].status = "ENDED EARLY"
            raise
        runs[-1].status = "FINISHED"

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(tracking, "start_run", start_run)
        patch.setattr(tracking, "check_reachable", lambda _: None)
        patch.setitem(PRESETS, "tiny", ARCHITECTURE)
        torch.set_num_threads(1)
        stage_noise()
        yield runs
        torch.set_num_threads(threads)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
