"""DDNM and DDNM+: zero-shot restoration by the range-null space decomposition."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.schedules import edm_sigmas
from invfusion.operators import Measurement
from invfusion.samplers.base import (
    AlgorithmVariant,
    BoundDenoiser,
    RestoringSampler,
    damped,
    filtered,
    fresh_noise,
    is_noisy,
    per_sample,
)

# Below it, a noisy measurement corrects nothing any more.
SMALLEST_LEVEL = 1e-3


class DDNM(RestoringSampler):
    """Each estimate of the clean image takes over the part that the measurement determines, then noise is added back.

    Noisy measurements are corrected along every singular vector only as far as the noise level allows, and bring their
    own noise along (DDNM+). Without time travel. Source: Wang et al. 2023, Algorithm 1 and Eqs. 17, 51 (appendix I).

    published: the paper's code, with 1 - eta in the place of sqrt(1 - eta^2), one correction for all singular values,
    and the noise reduced in the null space too.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    requires_if_noisy: ClassVar[frozenset[str]] = frozenset({"damped"})
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"eta": (0.5, 0.7, 0.85, 1.0)}
    kind: Literal["ddnm"] = "ddnm"
    variant: AlgorithmVariant = "original"
    n_steps: int = Field(default=100, ge=1)
    eta: float = Field(default=0.85, ge=0, le=1)

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        sigmas: list[float] = edm_sigmas(self.n_steps).tolist()
        x = sigmas[0] * noise
        step = self._step_for(measurement)
        for sigma, t in pairwise(sigmas):
            denoised = D(x, sigma)
            z = fresh_noise(x, generators) if t > 0 else torch.zeros_like(x)
            x = step(measurement, denoised, (x - denoised) / sigma, t, z)
        return x

    def _step_for(self, measurement: Measurement) -> Callable[[Measurement, Tensor, Tensor, float, Tensor], Tensor]:
        if self.variant == "published":
            return self._published_step
        return self._step if measurement.operator.has_spectrum or not is_noisy(measurement) else self._damped_step

    def _damped_step(self, measurement: Measurement, denoised: Tensor, old: Tensor, t: float, z: Tensor) -> Tensor:
        residual = measurement.y - measurement.operator.H(denoised)
        corrected = denoised + damped(measurement, residual, max(t, SMALLEST_LEVEL) ** 2)
        return corrected + t * (math.sqrt(1 - self.eta**2) * old + self.eta * z)

    def _step(self, measurement: Measurement, denoised: Tensor, old: Tensor, t: float, z: Tensor) -> Tensor:
        H, keep = measurement.operator, math.sqrt(1 - self.eta**2)
        free = denoised + t * (keep * old + self.eta * z)

        def correction(s: Tensor) -> Tensor:
            return torch.where(s <= t, 1.0, keep * t / s.clamp(min=1e-12))

        # Noise that the measurement brought replaces old and new noise alike; a noiseless one brought none.
        def new_noise(s: Tensor) -> Tensor:
            left = torch.where(s <= t, (t**2 - s.square()).clamp(min=0).sqrt(), self.eta * t)
            return torch.where(s > 0, left, self.eta * t)

        def old_noise(s: Tensor) -> Tensor:
            return torch.where(s > 0, 0.0, keep * t)

        towards_y = filtered(measurement, measurement.y - H.H(denoised), correction)
        noise = filtered(measurement, H.H(z), new_noise) + filtered(measurement, H.H(old), old_noise)
        return free + H.H_pinv(H.H(denoised - free) + towards_y + noise)

    def _published_step(self, measurement: Measurement, denoised: Tensor, old: Tensor, t: float, z: Tensor) -> Tensor:
        H, sigma_y = measurement.operator, per_sample(measurement.sigma_y, z)
        correction = torch.where(sigma_y <= t, 1.0, t / sigma_y.clamp(min=1e-12))
        level = (t**2 - (correction * sigma_y).square()).clamp(min=0).sqrt()
        corrected = denoised + correction * H.H_pinv(measurement.y - H.H(denoised))
        return corrected + level * ((1 - self.eta) * old + self.eta * z)
