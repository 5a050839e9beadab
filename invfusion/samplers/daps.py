"""DAPS: decoupled annealing, which draws x_0 given x_t and y by Langevin dynamics at every noise level."""

from collections.abc import Sequence
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
    fresh_noise,
    per_sample,
)

ODE_SIGMA_MIN = 0.01


class DAPS(RestoringSampler):
    """At each level: solve the probability-flow ODE from x_t to x_ode, draw x_0, add the noise of the next level.

    x_0 is drawn by unadjusted Langevin steps for the density exp(-|Hx - y|^2 / 2 tau^2 - |x - x_ode|^2 / 2 sigma^2).
    tau: the noise of y that is assumed, whatever sigma_y is; the authors took 0.01 for sigma_y = 0.05. lr: the step at
    the first level, for an operator of norm 1. It falls linearly to a hundredth, and is divided by norm^2; lr < 2 tau^2
    is stable. The result is the last draw of x_0. Langevin steps that really reached their density would spread the
    null space too widely, by the noise level itself: with a larger tau, choose lr with care. Source: Zhang et al. 2024,
    Algorithm 1, and the settings of their code.

    published: the paper's code, with tau at least sigma_y, from 80, with an ODE that ends at 0, an lr that is never
    scaled, and no Langevin steps at the last level, so that the result does not fit y.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"adjoint"})
    # Up to just below 2 tau^2.
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"lr": (1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4)}
    kind: Literal["daps"] = "daps"
    variant: AlgorithmVariant = "original"
    n_levels: int = Field(default=200, ge=1)
    n_ode_steps: int = Field(default=5, ge=1)
    n_langevin_steps: int = Field(default=100, ge=1)
    lr: float = Field(default=1e-4, gt=0)
    tau: float = Field(default=0.01, gt=0)

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        published = self.variant == "published"
        sigmas: list[float] = edm_sigmas(self.n_levels, sigma_max=80.0 if published else 100.0, sigma_min=0.1).tolist()
        x = sigmas[0] * noise
        for i, (sigma, t) in enumerate(pairwise(sigmas)):
            x0 = self._solve_ode(D, x, sigma)
            if not (published and t == 0):
                x0 = self._langevin(measurement, x0, sigma, 1 - 0.99 * i / self.n_levels, generators)
            x = x0 + t * fresh_noise(x0, generators) if t > 0 else x0
        return x

    def _solve_ode(self, D: BoundDenoiser, x: Tensor, sigma: float) -> Tensor:
        """Euler steps of the probability-flow ODE from sigma to nearly 0."""
        if self.variant == "published":
            levels = edm_sigmas(self.n_ode_steps, sigma, ODE_SIGMA_MIN).tolist()
        else:
            levels = edm_sigmas(self.n_ode_steps + 1, sigma, ODE_SIGMA_MIN).tolist()[:-1]
        for s, t in pairwise(levels):
            x = x + (t - s) * (x - D(x, s)) / s
        return x

    def _langevin(
        self, measurement: Measurement, x0: Tensor, sigma: float, decay: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        H, y = measurement.operator, measurement.y
        tau, lr = torch.full_like(H.norm, self.tau), torch.full_like(H.norm, self.lr * decay)
        if self.variant == "published":
            tau = tau.maximum(measurement.sigma_y)
        else:
            lr = (lr / H.norm.clamp(min=1e-12).square()).clamp(max=sigma**2)
        lr, weight = per_sample(lr, x0), per_sample(tau.square().reciprocal(), x0)
        x = x0
        for _ in range(self.n_langevin_steps):
            score = weight * H.H_adjoint(y - H.H(x)) + (x0 - x) / sigma**2
            x = x + lr * score + (2 * lr).sqrt() * fresh_noise(x, generators)
        return x
