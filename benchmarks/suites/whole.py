"""The data path, and whole training and sampling, in images per second."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.plain import PlainDenoiser, PlainTrainer, plain_measurement, plain_sample
from benchmarks.records import Record, compared, rounded
from benchmarks.setting import BATCHES, MIXTURE, Model, Setting
from benchmarks.suites.steps import plain_of
from benchmarks.timing import interleaved
from invfusion import rng
from invfusion.data import StagedDataset, TrainingStream
from invfusion.data.build import BuildConfig, build_dataset
from invfusion.data.sources.base import Listing, SourceImage
from invfusion.data.staging import stage_dataset
from invfusion.models import Denoiser
from invfusion.operators import Measurement
from invfusion.samplers import MMSE, Heun
from invfusion.training.distributed import Processes
from invfusion.training.loop import train

# Images of the made-up dataset, and steps of one timed training run.
N_IMAGES = {16: 1000, 64: 300, 128: 100, 256: 40}
STEPS = 8
# Levels of the sampler: 2n - 1 network calls.
LEVELS = 6
# What restores in one step.
RESTORERS: tuple[Model, ...] = ("invfusion", "invfusion_g")


def data(device: torch.device, seconds: float) -> Iterator[Record]:
    """From shards to staged arrays, and from those to training batches on the device."""
    for preset in ("digits16", "ffhq64", "ffhq256"):
        setting = Setting(preset, device)
        with tempfile.TemporaryDirectory() as folder:
            staging, dataset = _staged(setting, Path(folder))
            stream = TrainingStream(dataset, 0, setting.batch_size)
            starts = iter(range(0, 10**9, setting.batch_size))
            calls = {"batch": lambda: stream.batch(next(starts)).images.to(device)}  # noqa: B023 - called here
            times = interleaved(calls, seconds, device)
            yield {
                "suite": "data",
                "preset": setting.name,
                "staging_images_per_second": rounded(staging),
                "batches_images_per_second": rounded(setting.batch_size / times["batch"].median),
            }


def _staged(setting: Setting, folder: Path) -> tuple[float, StagedDataset]:
    """Images per second of staging a dataset of noise, and the dataset; noise is the worst case of a PNG decoder."""
    size = setting.config.image_shape[1]
    n = N_IMAGES[size]
    pixels = torch.randint(256, (n, size, size, 3), generator=rng.generator(0, "benchmarks/data")).to(torch.uint8)
    pictures = (
        SourceImage(f"{i:06d}", "noise", Image.fromarray(p.numpy()), split="train") for i, p in enumerate(pixels)
    )
    listing = Listing("noise", "none", pictures, n)
    build_dataset(listing, folder / "shards", BuildConfig(name="noise", image_size=size, shard_images=n // 2))
    start = time.perf_counter()
    stage_dataset(folder / "shards", folder / "staged", size)
    return n / (time.perf_counter() - start), StagedDataset(folder / "staged", "train")


def whole(device: torch.device, seconds: float) -> Iterator[Record]:
    """Training with data, draws and checkpoints; samples in a few steps; estimates in one: every preset on a GPU."""
    for preset in BATCHES[device.type] if device.type == "cuda" else ("digits16",):
        yield from _whole(Setting(preset, device), seconds)


def _whole(setting: Setting, seconds: float) -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        _, dataset = _staged(setting, Path(folder))
        calls = {"ours": _training_run(setting, dataset, 0), "plain": _plain_run(setting, dataset)}
        calls |= {"ahead": _training_run(setting, dataset, 1)}
        times = interleaved(calls, seconds, setting.device, at_least=2)
    images = STEPS * setting.batch_size
    yield _rates(compared("whole", times, what="training", preset=setting.name, images=images), images) | {
        "drawn_ahead_ms": rounded(1e3 * times["ahead"].median)
    }
    n = setting.sampling_batch
    times = interleaved(_sampling_runs(setting, n), seconds, setting.device, at_least=2)
    yield _rates(compared("whole", times, what=f"sampling, {2 * LEVELS - 1} calls", preset=setting.name, images=n), n)
    for model in RESTORERS:
        runs = restoring_runs(setting, setting.denoiser(model).eval(), setting.denoiser(plain_of(model)).eval())
        for kind in MIXTURE[:-1]:
            of_kind = {name: partial(run, kind, 0) for name, run in runs.items()}
            times = interleaved(of_kind, seconds, setting.device, at_least=2)
            what = f"one step, {model}, {kind}"
            yield _rates(compared("whole", times, what=what, preset=setting.name, images=n), n)


def _rates(record: Record, images: int) -> Record:
    return record | {"images_per_second": rounded(1e3 * images / record["ours_ms"])}


def _training_run(setting: Setting, dataset: StagedDataset, n_threads: int) -> Callable[[], Any]:
    task = setting.task("mixture")
    config = task.config.model_copy(update={"images": STEPS * setting.batch_size})
    stream = TrainingStream(dataset, task.seed, config.micro_batch_size)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(
                replace(task, config=config), setting.denoiser("invfusion"), stream, Path(folder),
                device=setting.device, processes=Processes(), n_draw_threads=n_threads,
            )  # fmt: skip

    return run


def _plain_run(setting: Setting, dataset: StagedDataset) -> Callable[[], Any]:
    def run() -> None:
        trainer = PlainTrainer(setting.task("mixture"), setting.denoiser("invfusion"), setting.device)
        batches = TrainingStream(dataset, 0, setting.batch_size).iterate(0, STEPS * setting.batch_size)
        for step in range(STEPS):
            trainer.step(step * setting.batch_size, batches)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(trainer.averaged.state_dict(), Path(folder) / "state.pt")

    return run


def _sampling_runs(setting: Setting, n: int) -> dict[str, Callable[[], Any]]:
    denoiser, sampler = setting.denoiser("invfusion").eval(), Heun(n_steps=LEVELS)
    noise = setting.starts(n)
    # Blur is the family in the middle: dearer than masks, cheaper than matrices.
    measurement = setting.measurement("strided_motion_blur", n)

    def ours() -> None:
        with torch.inference_mode():
            sampler.sample(denoiser, measurement, noise, generators=rng.generators(0, "benchmarks/way", range(n)))

    return {"ours": ours, "plain": lambda: plain_sample(PlainDenoiser(denoiser), measurement, noise, sampler)}


def restoring_runs(setting: Setting, denoiser: Denoiser, plain: Denoiser) -> dict[str, Callable[[str, int], None]]:
    """One-step estimates of a batch of images by a kind of operator, drawn under an index, and what it sees of them:
    all of it within the call."""
    network, n, sampler = PlainDenoiser(plain), setting.sampling_batch, MMSE()
    x, noise, sigma = setting.images(n), setting.starts(n), torch.full((n,), sampler.sigma, device=setting.device)

    def measured(kind: str, index: int) -> Measurement:
        return Measurement.of(x, setting.operator(kind, n, index))

    def ours(kind: str, index: int) -> None:
        ways = rng.generators(0, "benchmarks/way", range(n))
        with torch.inference_mode():
            sampler.sample(denoiser, measured(kind, index), noise, generators=ways)

    def plainly(kind: str, index: int) -> None:
        with torch.inference_mode():
            network(sampler.sigma * noise, sigma, plain_measurement(measured(kind, index)))

    return {"ours": ours, "plain": plainly}
