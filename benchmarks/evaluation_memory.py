"""Peak memory of a whole evaluation at a profile's own number of images and size, with a tiny network.

    python -m benchmarks.evaluation_memory ffhq64

Random images are staged in a scratch folder, as many to restore as the profile says and as many to compare with, and
each method restores every family of the profile; diffusion models with one step, DDRM and DPS with their own, so that
few --images are in place. For each family the line that is printed says the most memory that the process held, over
what it held with the models loaded, in MiB, and the seconds it took.
"""

import argparse
import contextlib
import ctypes
import gc
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.data.prior import fit_prior, staged_prior
from components.evaluation import evaluate as component
from components.evaluation.costs import resident
from components.evaluation.methods import columns
from components.params import Params
from components.paths import MODELS, STAGED
from components.profiles import load_profile, profile_names
from invfusion.data.manifest import MANIFEST
from invfusion.data.staged import StagedManifest, StagedShard
from invfusion.models import DenoiserConfig, LevelConfig, build_denoiser, save_denoiser
from invfusion.rng import generator
from invfusion.samplers import Heun

USUAL = ("Wiener", "Gaussian posterior", "Palette", "Unconditional")
# Those that take longer: many steps, gradients, principal components.
METHODS = (*USUAL, "DDRM", "DPS", "InvFusion", "InvFusion-G", "MMSE", "NPPC")
SHARD = 1000
# Of a network whose activations take next to nothing.
WIDTH, PATCH = 48, 16
# Seconds between two looks at the memory.
PERIOD = 0.05
# Resamples of a distance between sets take time, and of memory a number for each image.
RESAMPLES = 10

log = logging.getLogger("benchmarks")


def tiny(params: Params, n_images: int | None, methods: Sequence[str]) -> Params:
    """The profile with one step per image, those of its methods, and at most so many images."""
    n = params.evaluate.n_images if n_images is None else n_images
    changes = {
        "methods": [name for name in methods if name in params.methods],
        "sampler": Heun(n_steps=1),
        "n_images": n,
        "n_unconditional": min(n, params.evaluate.n_unconditional),
        "bootstrap_resamples": RESAMPLES,
    }
    return params.model_copy(
        update={
            "evaluate": params.evaluate.model_copy(update=changes),
            "runtime": params.runtime.model_copy(update={"processes": 1, "device": "cpu"}),
        }
    )


def stage_noise(params: Params) -> None:
    """Random smooth images as the staged test split, and as many to train on."""
    n, splits = params.evaluate.n_images, ("test", "train")
    manifest = StagedManifest(
        name="noise",
        image_size=params.data.image_size,
        channels=3,
        class_names=[],
        n_samples=dict.fromkeys(splits, n),
        digests=dict.fromkeys(splits, ""),
        shards={split: [stage_shard(params, split, first, n) for first in range(0, n, SHARD)] for split in splits},
    )
    (STAGED / MANIFEST).write_text(manifest.model_dump_json())


def stage_shard(params: Params, split: str, first: int, n: int) -> str:
    """The images of a split from number `first` on, at most a shard of them; returns the shard's name."""
    name, size, count = f"{split}-{first // SHARD:06d}", params.data.image_size, min(SHARD, n - first)
    folder = STAGED / split
    folder.mkdir(parents=True, exist_ok=True)
    draws = generator(params.seed, f"memory/{split}", first)
    coarse = torch.randint(256, (count, 3, size // 8, size // 8), dtype=torch.uint8, generator=draws)
    np.save(folder / f"{name}.npy", coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).numpy())
    keys = [f"image-{first + i:06d}" for i in range(count)]
    labels = [i % max(params.model.n_classes, 1) for i in range(count)]
    sidecar = StagedShard(source="", source_sha256="", pixels_sha256="", keys=keys, labels=labels)
    (folder / f"{name}.json").write_text(sidecar.model_dump_json())
    return name


def save_models(params: Params) -> list[str]:
    """Untrained networks under the names of the profile's models; returns these."""
    config = DenoiserConfig(
        image_size=params.data.image_size, patch_size=PATCH, levels=(LevelConfig(width=WIDTH, depth=1),),
        head_dim=WIDTH // 2, mapping_width=16, mapping_hidden=16, mapping_depth=1, n_classes=params.model.n_classes,
    )  # fmt: skip
    gaussian = {"variant": "invfusion", "preconditioning": "gaussian", "prior": staged_prior(STAGED)}
    models: dict[str, dict[str, Any]] = {
        "unconditional": {"variant": "unconditional"},
        "palette": {"variant": "palette"},
        "invfusion": {"variant": "invfusion"},
        "invfusion_g": gaussian,
        "mmse": gaussian,
        "nppc": gaussian | {"n_components": getattr(params.recipe("nppc"), "n_components", 0)},
    }
    for name, settings in models.items():
        save_denoiser(build_denoiser(config, seed=0, **settings), MODELS / name, {})
    return list(models)


def held() -> float:
    """MiB of this process's own memory: without pages of mapped files, which the system drops when it needs room."""
    return resident("RssAnon") + resident("RssShmem")


def give_back_freed() -> None:
    """What was freed, as by fitting the prior, goes back to the system: else later work hides in it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def watched() -> Iterator[list[float]]:
    """The memory held at every look within the block."""
    seen, ended = [held()], threading.Event()

    def look() -> None:
        while not ended.wait(PERIOD):
            seen[0] = max(seen[0], held())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def run(
    profile: str, n_images: int | None, methods: Sequence[str], kinds: Sequence[str], folder: Path
) -> Iterator[dict[str, Any]]:
    """The figures of one profile, family by family."""
    params = tiny(load_profile(profile), n_images, methods)
    with contextlib.chdir(folder):
        stage_noise(params)
        assert params.data.gaussian_prior is not None, "the filter, which every evaluation has, needs a prior"
        fit_prior(STAGED, params.data.gaussian_prior)
        plan = columns(params, save_models(params))
        models = {m.model: MODELS / m.model for column in plan for m in column.methods if m.model}
        evaluation = component.prepare(params, plan, models, Path("artifacts/evaluation"))
        for name in models:
            evaluation.restorer.denoiser(name)
        give_back_freed()
        before = held()
        for column in plan:
            if not kinds or column.kind in kinds:
                start = time.perf_counter()
                with watched() as peak:
                    replace(evaluation, plan=(column,)).run()
                yield {
                    "profile": profile,
                    "pixels": params.data.image_size,
                    "images": params.evaluate.n_images,
                    "family": column.kind,
                    "methods": [method.name for method in column.methods],
                    "held_before_mib": round(before),
                    "peak_over_models_mib": round(max(peak) - before),
                    "seconds": round(time.perf_counter() - start),
                }


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("profile", choices=profile_names())
    command.add_argument("--images", type=int, help="instead of the profile's own number")
    command.add_argument("--methods", nargs="+", default=USUAL, choices=METHODS)
    command.add_argument("--families", nargs="*", default=[], help="kinds; default: all of the profile")
    options = command.parse_args()
    if options.images is not None and options.images < 1:
        command.error(f"--images is at least 1, got {options.images}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = Path(tempfile.mkdtemp(prefix="evaluation-memory-"))
    try:
        for line in run(options.profile, options.images, options.methods, options.families, folder):
            print(line, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
