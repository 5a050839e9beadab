"""DPS: ancestral sampling, pulled towards the measurement by a gradient through the denoiser."""

import math
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
    per_sample,
)


class DPS(RestoringSampler):
    """After each ancestral step, x moves by zeta against the gradient of |y - H D(x)|, the norm of each image's own.

     The steps are DDPM's, and zeta is the weight of the gradient with respect to the variance-preserving x, divided by
     the operator's norm. The noise of y is not used. Source: Chung et al. 2023, Algorithm 1 (xi_i = zeta / |y - H D|
     for half the squared norm's gradient); their code also clips D.

     published: the paper's code, on EDM levels and without the factor that translates zeta to variance-exploding x
    . It also took one norm for a whole batch; here it is that of a batch of one.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"adjoint", "grad"})
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"zeta": (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)}
    kind: Literal["dps"] = "dps"
    variant: AlgorithmVariant = "original"
    n_steps: int = Field(default=1000, ge=1, le=1000)
    zeta: float = Field(default=0.5, ge=0)
    eta: float = Field(default=1.0, ge=0, le=1)

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        H, y = measurement.operator, measurement.y
        zeta = self.zeta / per_sample(H.norm, noise).clamp(min=1e-12)
        original = self.variant == "original"
        sigmas: list[float] = (ddpm_ladder if original else edm_sigmas)(self.n_steps).tolist()
        x = sigmas[0] * noise
        for sigma, t in pairwise(sigmas):
            denoised, pull_back = D.with_pullback(x, sigma)
            gradient = -pull_back(H.H_adjoint(_unit(y - H.H(denoised))))
            to_ve = math.sqrt((1 + sigma**2) * (1 + t**2)) if original else 1.0
            x = ancestral_step(x, denoised, sigma, t, self.eta, generators) - zeta * to_ve * gradient
        return x


def _unit(residual: Tensor) -> Tensor:
    """Each image's residual divided by its norm; a residual of zero stays zero."""
    norm = torch.linalg.vector_norm(residual.flatten(1), dim=1)
    return residual / per_sample(norm.clamp(min=1e-12), residual)
