"""A prior whose denoiser is known exactly: N(0, 0.25 I)."""

import torch
from torch import Tensor

from invfusion.operators import MaskOperator, Measurement
from invfusion.rng import generators, randn

SHAPE = (3, 8, 8)
VARIANCE = 0.25


class GaussianDenoiser:
    """D(x, s) = x v / (v + s^2), which counts its calls and the batch rows it saw."""

    def __init__(self) -> None:
        self.calls = 0
        self.measurements: list[Measurement | None] = []

    def __call__(self, x: Tensor, sigma: Tensor, measurement=None, class_labels=None) -> Tensor:
        assert sigma.shape == (len(x),)
        self.calls += 1
        self.measurements.append(measurement)
        variance = sigma.view(-1, 1, 1, 1) ** 2
        return x * VARIANCE / (VARIANCE + variance)


def noise(n: int, stream: str = "noise") -> Tensor:
    return randn(SHAPE, generators(0, stream, range(n)))


def way(n: int, start: int = 0) -> list[torch.Generator]:
    return generators(0, "way", range(start, start + n))


def half_mask(n: int) -> MaskOperator:
    """Each sample sees a random half of its pixels."""
    draws = [torch.rand(1, *SHAPE[1:], generator=g) for g in generators(0, "mask", range(n))]
    return MaskOperator(SHAPE, (torch.stack(draws) < 0.5).float())


def measured(n: int, sigma_y: float = 0.0) -> tuple[Tensor, Measurement]:
    """Images of the prior with measurements of half of their pixels."""
    x = VARIANCE**0.5 * noise(n, "truth")
    return x, Measurement.of(x, half_mask(n), sigma_y, noise(n, "measurement noise"))
