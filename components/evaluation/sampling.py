"""One batch of restorations: what a sampler makes of measurements, and what is kept of it.

The code that restorations depend on is this file's, the sampler's, the model's and the operators'; nothing that judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invfusion.codec import encode
from invfusion.diffusion.guidance import GuidedDenoiser
from invfusion.diffusion.protocols import ClassConditional, DenoiserLike
from invfusion.diffusion.withheld import Withheld
from invfusion.gaussian import GaussianPrior
from invfusion.metrics.tools.residual import squared_residual
from invfusion.models.denoiser import Denoiser
from invfusion.operators.base import Measurement
from invfusion.rng import generator, randn
from invfusion.samplers.base import SampleOutput, Sampler


@dataclass(frozen=True)
class Task:
    """What is to be restored: a measurement of B images on the device, with their keys, labels (B,) and draws.

    draws: numbers the repeated restorations of one image, from 0.
    """

    measurement: Measurement
    keys: Sequence[str]
    draws: Sequence[int]
    labels: Tensor


def restore_batch(
    sampler: Sampler | None,
    denoiser: Denoiser | GaussianPrior | None,
    task: Task,
    *,
    seed: int,
    guidance: float,
    withheld: bool = False,
) -> SampleOutput:
    """Restore a batch; without a sampler the images are H_pinv(y). Every method starts an image from the same noise.

    withheld: tell the denoiser nothing of the measurement.
    """
    measurement, names = task.measurement, list(zip(task.keys, task.draws, strict=True))
    if sampler is None:
        return SampleOutput(measurement.H_pinv_y, nfe=0)
    start = [generator(seed, f"evaluate/start/{d}", k) for k, d in names]
    on_the_way = [generator(seed, f"evaluate/sampler/{d}", k) for k, d in names]
    noise = randn(measurement.operator.image_shape, start, device=measurement.y.device)
    if not isinstance(denoiser, Denoiser):
        return sampler.sample(denoiser or _no_denoiser, measurement, noise, generators=on_the_way)
    labels = _labels(task.labels, denoiser.n_classes, noise.device)
    guided = _guided(Withheld(denoiser) if withheld else denoiser, sampler, labels, guidance)
    return sampler.sample(guided, measurement, noise, generators=on_the_way, class_labels=labels)


def kept(output: SampleOutput, measurement: Measurement, *, projects: bool, rows: Sequence[int]) -> dict[str, Tensor]:
    """What metrics may need of a batch, in the order of its images: see `invfusion.metrics.Restorations`.

    projects: whether images are made consistent too. rows: those whose principal components are kept.
    """
    x = finite(output.x)
    found = {"images": encode(x), "diverged": output.diverged, "residual": squared_residual(x, measurement)}
    if projects:
        # Before it is quantised: the paper's CFID.
        found["projected"] = encode(measurement.operator.project(x, measurement.y))
    if output.components is not None and output.stds is not None:
        chosen = list(rows)
        found |= {"mean": output.x[chosen], "components": output.components[chosen], "stds": output.stds[chosen]}
    return found


def finite(x: Tensor) -> Tensor:
    """The images with grey in the place of those that diverged; they are counted, and stay out of every average."""
    sound = x.isfinite().flatten(1).all(1)
    return x.where(sound.view(-1, 1, 1, 1), 0.0)


def _guided(denoiser: ClassConditional, sampler: Sampler, labels: Tensor | None, guidance: float) -> DenoiserLike:
    """The denoiser with classifier-free guidance, where it knows classes; guidance has no principal components."""
    if guidance == 1 or labels is None or "components" in sampler.requires:
        return denoiser
    return GuidedDenoiser(denoiser, guidance)


def _labels(labels: Tensor, n_classes: int, device: torch.device) -> Tensor | None:
    """Class labels for a class-conditional model; an image without one gets the index that means no class."""
    if n_classes == 0:
        return None
    return labels.where(labels >= 0, n_classes).to(device)


def _no_denoiser(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("a method without a model called one")
