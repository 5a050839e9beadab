"""Pseudo-inverse guided diffusion (PiGDM): guidance by the gradient of a Gaussian approximation of p(y | x_t)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.schedules import ddpm_ladder, edm_sigmas
from invfusion.operators import Measurement
from invfusion.samplers.base import (
    AlgorithmVariant,
    BoundDenoiser,
    RestoringSampler,
    ancestral_step,
    damped,
)


class PiGDM(RestoringSampler):
    """x_0 given x_t is taken for N(D, r^2 I) with r^2 = sigma^2 / (1 + sigma^2), which makes p(y | x_t) a Gaussian.

    The guidance is r^2 times its score: (dD/dx)^T H^T (H H^T + sigma_y^2 / r^2)^-1 (y - H D). It does not change with
    the operator's norm, so that no step has to be scaled; `weight` multiplies it. The steps are DDPM's, from H_pinv y
    plus noise. Source: Song et al. 2023, Algorithm 1, where the weight is 1.

    published: the paper's code, on EDM levels from pure noise, with eta = 0 unless given, and without the 1 / r^2 of
    the measurement's noise.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv", "grad"})
    requires_if_noisy: ClassVar[frozenset[str]] = frozenset({"damped"})
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"weight": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)}
    kind: Literal["pigdm"] = "pigdm"
    variant: AlgorithmVariant = "original"
    n_steps: int = Field(default=100, ge=1, le=1000)
    weight: float = Field(default=1.0, ge=0)
    eta: float | None = Field(default=None, ge=0, le=1, description="None: the variant's own, 1 or (published) 0")

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        H, y = measurement.operator, measurement.y
        original = self.variant == "original"
        eta = float(original) if self.eta is None else self.eta
        sigmas: list[float] = (ddpm_ladder if original else edm_sigmas)(self.n_steps).tolist()
        x = sigmas[0] * noise + (measurement.H_pinv_y if original else 0)
        for sigma, t in pairwise(sigmas):
            denoised, pull_back = D.with_pullback(x, sigma)
            r2 = sigma**2 / (1 + sigma**2) if original else 1.0
            guidance = pull_back(damped(measurement, y - H.H(denoised), r2))
            x = ancestral_step(x, denoised, sigma, t, eta, generators) + self.weight * guidance
        return x
