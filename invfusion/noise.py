"""Measurement noise: how y differs from H x, in training and in evaluation."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Generator, Tensor

from invfusion.errors import OperatorError
from invfusion.operators.base import LinearOperator, Measurement
from invfusion.rng import upload
from invfusion.schema import Config


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) else value


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"a range is [low, high] with low <= high, got {list(value)}")
    return value


NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# One value, or a range from which each sample draws uniformly.
Levels = Annotated[tuple[NotNegative, NotNegative], BeforeValidator(_as_range), AfterValidator(_ordered)]
Peaks = Annotated[tuple[Positive, Positive], BeforeValidator(_as_range), AfterValidator(_ordered)]


class Noise(Config, ABC):
    """A distribution of y given H x. needs_nonnegative: whether H must map non-negative images to non-negative y."""

    needs_nonnegative: ClassVar[bool] = False

    @property
    @abstractmethod
    def is_absent(self) -> bool:
        """Whether y = H x always."""

    @abstractmethod
    def describe(self) -> str:
        """In words, for tables and reports."""

    @abstractmethod
    def measure(self, x: Tensor, operator: LinearOperator, generator: Generator) -> Measurement:
        """Measure images (B, C, H, W) in [-1, 1]; everything random comes from the CPU generator."""


class GaussianNoise(Noise):
    """y = H x + sigma_y n with standard normal n; sigma_y per entry, in pixel units ([-1, 1])."""

    kind: Literal["gaussian"] = "gaussian"
    sigma_y: Levels = (0.0, 0.0)

    @property
    def is_absent(self) -> bool:
        return self.sigma_y[1] == 0

    def describe(self) -> str:
        return f"Gaussian, σ = {_span(self.sigma_y)} per entry, in pixel units ([-1, 1])"

    def measure(self, x: Tensor, operator: LinearOperator, generator: Generator) -> Measurement:
        if self.is_absent:
            return Measurement.of(x, operator)
        sigma_y = _drawn(self.sigma_y, len(x), generator)
        noise = torch.randn((len(x), *operator.measurement_shape), generator=generator)
        return Measurement.of(x, operator, sigma_y, upload(noise, x.device))


class PoissonNoise(Noise):
    """Photon counts: with u = (x + 1) / 2 in [0, 1], y = 2 N / peak - H 1 for N ~ Poisson(peak * H u), so E[y] = H x.

    peak: the expected count of a white pixel; an entry has the standard deviation 2 sqrt(H u / peak). The measurement's
    `sigma_y` states the root mean square of that over the entries that see anything, as the counts tell it.
    Source: paper, Table 12, which gives no level.
    """

    needs_nonnegative: ClassVar[bool] = True
    kind: Literal["poisson"] = "poisson"
    peak: Peaks

    @property
    def is_absent(self) -> bool:
        return False

    def describe(self) -> str:
        return f"Poisson, peak {_span(self.peak)} counts for a white pixel"

    def measure(self, x: Tensor, operator: LinearOperator, generator: Generator) -> Measurement:
        """Of images (B, C, H, W). Raises `OperatorError` where H makes negative intensities: no counts."""
        white = operator.H(torch.ones_like(x)).cpu()
        intensity = (operator.H(x).cpu() + white) / 2
        if bool((intensity < -1e-3).any()):
            raise OperatorError(
                f"Poisson noise counts photons, but the operator '{operator.kind}' has negative entries"
            )
        peak = _drawn(self.peak, len(x), generator)
        per_entry = peak.view(-1, *[1] * (white.ndim - 1))
        counts = torch.poisson(per_entry * intensity.clamp(min=0), generator=generator)
        sigma_y = _deviation(counts.flatten(1).sum(1), (white > 0).flatten(1).sum(1), peak)
        return Measurement((2 * counts / per_entry - white).to(x.device), operator, sigma_y)


def _deviation(total: Tensor, n_entries: Tensor, peak: Tensor) -> Tensor:
    """2 sqrt(mean intensity / peak), (B,), at least that of one count; 0 where nothing is measured."""
    mean = total.clamp(min=1) / n_entries.clamp(min=1) / peak
    return (2 * (mean / peak).sqrt()).where(n_entries > 0, 0.0)


def _drawn(levels: tuple[float, float], n: int, generator: Generator) -> Tensor:
    low, high = levels
    return low + (high - low) * torch.rand(n, generator=generator)


def _span(levels: tuple[float, float]) -> str:
    low, high = levels
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


AnyNoise = Annotated[GaussianNoise | PoissonNoise, Field(discriminator="kind")]
