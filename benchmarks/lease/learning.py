"""That training on a device learns what it learns on a CPU: the same seeds, the losses side by side."""

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from benchmarks.lease.lab import Lab
from benchmarks.records import Record, rounded
from benchmarks.setting import Setting, family
from invfusion import rng
from invfusion.data import Batch
from invfusion.diffusion.losses import DiffusionLoss
from invfusion.models import build_denoiser
from invfusion.noise import GaussianNoise
from invfusion.training.config import OptimisationConfig, Precision
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper
from invfusion.training.task import Task

SIZE = 32
SHARED_STEPS = 12


def learning(lab: Lab, preset: str, seconds: float) -> Iterator[Record]:
    """A few steps here and on the CPU in float32, then bfloat16 here for so many seconds."""
    preset = lab.setting(preset).preset
    low_precision: Precision = "bf16" if lab.is_gpu else "fp32"
    # From weights off zero at the full rate: at first a fresh network answers zero, whatever the device computes.
    cpu = _losses(torch.device("cpu"), preset, "fp32", SHARED_STEPS, shaken=True)[0]
    here = _losses(lab.device, preset, "fp32", SHARED_STEPS, shaken=True)[0]
    low = _losses(lab.device, preset, low_precision, SHARED_STEPS, shaken=True)[0]
    yield {
        "case": f"{preset}, {SHARED_STEPS} steps beside the CPU",
        "cpu": [rounded(loss) for loss in cpu],
        "fp32": [rounded(loss) for loss in here],
        "bf16": [rounded(loss) for loss in low],
        "largest_difference_fp32": rounded(max(abs(a - b) for a, b in zip(here, cpu, strict=True))),
        "largest_difference_bf16": rounded(max(abs(a - b) for a, b in zip(low, cpu, strict=True))),
    }
    losses, took = _losses(lab.device, preset, low_precision, 10**9, seconds)
    tenth = max(len(losses) // 10, 1)
    yield {
        "case": f"{preset}, bf16, trained for {seconds:.0f} s on synthetic images",
        "images_per_s": rounded(len(losses) * SIZE / took),
        "steps": len(losses),
        "loss_first_tenth": rounded(sum(losses[:tenth]) / tenth),
        "loss_last_tenth": rounded(sum(losses[-tenth:]) / tenth),
    }


def _losses(
    device: torch.device, preset: str, precision: Precision, steps: int, seconds: float = float("inf"),
    shaken: bool = False,
) -> tuple[list[float], float]:  # fmt: skip
    """The losses of so many steps, or of so many seconds, and the seconds that they took."""
    made = Setting(preset, device).cpu_denoiser("invfusion") if shaken else build_denoiser(preset)
    denoiser = made.to(device).train()
    warmup = 0 if shaken else 10 * SIZE
    config = OptimisationConfig(
        batch_size=SIZE, micro_batch_size=SIZE, precision=precision, warmup_images=warmup, lr=3e-4
    )
    task = Task(DiffusionLoss(), family("mixture"), GaussianNoise(), config, seed=0)
    stepper = Stepper(task, denoiser, Processes(), device, n_threads=0 if device.type == "cpu" else 4)
    ema = EMA(denoiser, config.ema_half_life, config.ema_rampup)
    stream = _waves(denoiser.image_shape)
    losses: list[float] = []
    start = time.perf_counter()
    try:
        for nimg in range(0, steps * SIZE, SIZE):
            losses.append(stepper.step(nimg, stream)["loss"])
            ema.update(denoiser, nimg + SIZE, SIZE)
            if time.perf_counter() - start > seconds:
                break
    finally:
        stepper.draws.close()
    return losses, time.perf_counter() - start


def _waves(shape: tuple[int, ...]) -> Iterator[Batch]:
    """Images that can be learned: three plane waves of random direction, wavelength and colour."""
    c, h, w = shape
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    labels: Any = torch.zeros(SIZE, dtype=torch.long)
    for n in count():
        draws = rng.generator(0, "benchmarks/waves", n)
        k = 6 * torch.randn(SIZE, 3, 2, generator=draws)
        phase = k[:, :, 0, None, None] * rows + k[:, :, 1, None, None] * columns
        colour = torch.randn(SIZE, 3, c, generator=draws) / 3
        x = torch.einsum("bkc,bkhw->bchw", colour, (phase + k.sum(2)[:, :, None, None]).sin())
        yield Batch(((x + 1) * 127.5).clip(0, 255).to(torch.uint8), [str(i) for i in range(SIZE)], labels)
