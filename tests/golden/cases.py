"""What the golden numbers are numbers of: each preset family and variant, at reduced width, with seeded weights.

`python tests/golden/cases.py` writes golden.json anew: do so only where a change of results is intended, and read the
difference before committing it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invfusion.data import Batch
from invfusion.degradations import FAMILIES, Mixture
from invfusion.diffusion.losses import DiffusionLoss
from invfusion.models import PRESETS, Denoiser, LevelConfig, build_denoiser
from invfusion.noise import GaussianNoise
from invfusion.operators import Measurement
from invfusion.rng import generator, generators, randn
from invfusion.samplers import Heun
from invfusion.training.config import OptimisationConfig
from invfusion.training.distributed import Processes
from invfusion.training.step import Stepper
from invfusion.training.task import Task

FILE = Path(__file__).with_name("golden.json")
VARIANTS = ("unconditional", "palette", "invfusion")
N = 2
STEPS = 3
# Widths at which the levels keep the preset's kinds of blocks; its kernels and number of levels stay.
WIDTHS = {
    "digits16": (24, 48),
    "ffhq64": (24, 48, 192),
    "imagenet64": (24, 48, 192),
    "ffhq256": (24, 48, 192, 48),
    "small64": (48, 192),
}
PATCHES = FAMILIES["patch_inpainting"]()
BLUR = FAMILIES["strided_motion_blur"]()
OPTIMISATION = OptimisationConfig(
    images=8, batch_size=2 * N, micro_batch_size=N, warmup_images=0, augment_probability=0.3, label_dropout=0.5
)


def names() -> Iterator[tuple[str, str]]:
    """(preset, variant) of each case."""
    for preset in PRESETS:
        for variant in VARIANTS:
            yield preset, variant


def numbers(preset: str, variant: str) -> dict[str, Any]:
    """One forward pass, one training step and one sample."""
    return {
        "forward": _forward(_network(preset, variant)),
        "step": _step(_network(preset, variant)),
        "sample": _sample(_network(preset, variant)),
    }


def _network(preset: str, variant: str) -> Denoiser:
    """A small network of the family whose zero weights were moved off zero, as training would."""
    full = PRESETS[preset]
    levels = tuple(
        LevelConfig(width=width, depth=1, kernel=level.kernel)
        for width, level in zip(WIDTHS[preset], full.levels, strict=True)
    )
    patch = 4 if preset == "small64" else 2
    small = {"mapping_width": 32, "mapping_hidden": 32, "n_classes": min(full.n_classes, 10), "patch_size": patch}
    side = max(16, 2 * patch << len(levels) - 1)
    denoiser = build_denoiser(full, variant, image_size=side, levels=levels, head_dim=24, **small)  # type: ignore[arg-type]
    draw = generator(0, "golden/weights")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return denoiser.eval()


def _images(denoiser: Denoiser, n: int) -> Tensor:
    """n images (n, C, H, W) in [-1, 1]."""
    return (0.5 * randn(denoiser.image_shape, generators(0, "golden/x", range(n)))).clip(-1, 1)


def _measured(denoiser: Denoiser) -> tuple[Measurement, Tensor | None]:
    """The measurement of N images, with labels where the model knows classes."""
    x = _images(denoiser, N)
    operator = BLUR.sample(N, denoiser.image_shape, generator(0, "golden/operator"))
    measurement = GaussianNoise(sigma_y=(0.1, 0.1)).measure(x, operator, generator(0, "golden/noise"))
    return measurement, torch.arange(N) if denoiser.n_classes else None


def _forward(denoiser: Denoiser) -> dict[str, list[float]]:
    measurement, labels = _measured(denoiser)
    sigma = torch.tensor([0.3, 3.0])
    x = _images(denoiser, N) + sigma.view(-1, 1, 1, 1) * randn(denoiser.image_shape, generators(0, "eps", range(N)))
    with torch.inference_mode():
        denoised, logvar, _ = denoiser(x, sigma, measurement, labels, return_logvar=True)
    return {"denoised": _digest(denoised), "logvar": logvar.tolist()}


def _step(denoiser: Denoiser) -> dict[str, list[float]]:
    before = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    family = None if denoiser.variant == "unconditional" else Mixture(members=[PATCHES, BLUR])
    task = Task(DiffusionLoss(), family, GaussianNoise(sigma_y=(0.0, 0.2)), OPTIMISATION, seed=0)
    pixels = ((_images(denoiser, 2 * N) + 1) * 127.5).to(torch.uint8)
    labels = torch.arange(2 * N)
    batches = (Batch(pixels[i : i + N], ["a", "b"], labels[i : i + N]) for i in (0, N))
    stepper = Stepper(task, denoiser.train(), Processes(), torch.device("cpu"))
    logged = stepper.step(0, batches)
    # After the first step Adam's first moments are the gradient but for a factor.
    gradient = torch.cat([t.flatten() for name, t in stepper.tensors().items() if name.endswith("/exp_avg")])
    moved = torch.cat([(p.detach() - before[name]).flatten() for name, p in denoiser.named_parameters()])
    return {"logged": [logged["loss"], logged["grad_norm"]], "gradient": _digest(gradient), "update": _digest(moved)}


def _sample(denoiser: Denoiser) -> dict[str, list[float]]:
    measurement, labels = _measured(denoiser)
    draws = generators(0, "golden/draws", range(N))
    noise = randn(denoiser.image_shape, draws)
    sampler = Heun(n_steps=STEPS, S_churn=0.5)
    with torch.inference_mode():
        seen = measurement if denoiser.is_conditional else None
        images = sampler.sample(denoiser, seen, noise, generators=draws, class_labels=labels).x
    return {"images": _digest(images)}


def _digest(values: Tensor) -> list[float]:
    """The root mean square, and three projections on fixed random directions that any change of the values moves."""
    flat = values.flatten().double()
    directions = randn(flat.shape, generators(0, "golden/direction", range(3))).double()
    return [float(flat.square().mean().sqrt()), *(directions @ flat / len(flat) ** 0.5).tolist()]


if __name__ == "__main__":
    torch.set_num_threads(2)
    FILE.write_text(json.dumps({"/".join(case): numbers(*case) for case in names()}, indent=1) + "\n")
