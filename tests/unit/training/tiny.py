"""A training run of seconds, shared by the tests and runnable as a process of its own, so that it can be killed.

`python tiny.py <folder> <images> [<micro-batch size>]` trains there and exits; under WORLD_SIZE=2 with a partner.
"""

import hashlib
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invfusion.data import StagedDataset, TrainingStream
from invfusion.data.manifest import MANIFEST
from invfusion.data.staged import StagedManifest, StagedShard
from invfusion.degradations import FAMILIES
from invfusion.degradations.mixture import Mixture
from invfusion.diffusion.losses import DiffusionLoss
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, build_denoiser
from invfusion.noise import GaussianNoise
from invfusion.rng import generator
from invfusion.training.config import OptimisationConfig
from invfusion.training.distributed import Processes, processes
from invfusion.training.lock import exclusive
from invfusion.training.loop import LOG, train
from invfusion.training.task import Task

N = 20
ARCHITECTURE = DenoiserConfig(
    image_size=8,
    patch_size=2,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_depth=1,
    mapping_hidden=16,
    n_classes=3,
    dropout=0.1,
)
CONFIG = OptimisationConfig(
    images=96,
    batch_size=8,
    micro_batch_size=4,
    lr=1e-3,
    warmup_images=16,
    decay_start_images=48,
    ema_half_life=32,
    augment_probability=0.3,
    label_dropout=0.2,
    checkpoint_images=24,
    log_images=16,
    sample_grid_images=1000,
)
FAMILY = Mixture(members=[FAMILIES[kind]() for kind in ("patch_inpainting", "strided_motion_blur", "matrix", "null")])
TASK = Task(
    loss=DiffusionLoss(),
    degradation=FAMILY,
    noise=GaussianNoise(sigma_y=(0.0, 0.2)),
    config=CONFIG,
    seed=3,
    fingerprint="tiny",
)
CPU = torch.device("cpu")


def task(**changes: Any) -> Task:
    """The tiny task with other settings of its optimisation, or other fields."""
    fields = {name: changes.pop(name) for name in list(changes) if name not in OptimisationConfig.model_fields}
    return replace(TASK, config=CONFIG.model_copy(update=changes), **fields)


def stage(folder: Path) -> StagedDataset:
    """N random images with labels, staged as a train split."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(256, (N, 3, 8, 8), generator=generator(0, "pixels")).to(torch.uint8)
    np.save(folder / "train" / "train-000000.npy", pixels.numpy())
    keys, labels = [f"image-{i:02d}" for i in range(N)], [i % 4 - 1 for i in range(N)]
    sidecar = StagedShard(source="", source_sha256="", pixels_sha256="", keys=keys, labels=labels)
    (folder / "train" / "train-000000.json").write_text(sidecar.model_dump_json())
    manifest = StagedManifest(
        name="tiny", image_size=8, channels=3, class_names=[], n_samples={"train": N}, digests={"train": ""},
        shards={"train": ["train-000000"]},
    )  # fmt: skip
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return StagedDataset(folder, "train")


def run(folder: Path, the_task: Task = TASK, denoiser: Denoiser | None = None, **options: Any) -> Denoiser | None:
    """Train in this process."""
    options = {"device": CPU, "processes": Processes()} | options
    dataset, n_workers = stage(folder / "staged"), options.pop("n_workers", 0)
    stream = TrainingStream(dataset, the_task.seed, the_task.config.micro_batch_size, n_workers)
    return train(the_task, denoiser or build_denoiser(ARCHITECTURE), stream, folder / "state", **options)


def curve(folder: Path) -> list[dict[str, float]]:
    """The log but for the speed, which is no function of the seed."""
    lines = (folder / "state" / LOG).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]


def files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of the newest checkpoint."""
    newest = sorted((folder / "state").glob("checkpoint-*"))[-1]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in newest.iterdir()}


def normal(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name))


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    folder, images = Path(sys.argv[1]), int(sys.argv[2])
    with processes(CPU) as group, exclusive(folder / f"rank-{os.environ.get('RANK', '0')}"):
        run(folder, task(images=images), processes=group)


if __name__ == "__main__":
    main()
