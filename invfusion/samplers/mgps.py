"""MGPS: posterior sampling through midpoints, by a variational fit at every transition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.schedules import ddpm_sigmas
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, RestoringSampler, fresh_noise, per_sample

# DDPM time of the last state: the third of the paper's 300 even levels, however many levels lie above it. Were it the
# third of few, sampling would end at a high noise level.
LAST_TIME = 2 * 999 / 299


@dataclass(frozen=True)
class Fit:
    """What a variational fit minimises: a Gaussian prior N(mean, std^2) at level m, and the measurement's potential."""

    measurement: Measurement
    precision: Tensor
    m: float
    mean: Tensor
    std: float


class MGPS(RestoringSampler):
    """Midpoint guidance: x_t given x_s is drawn through x_m with m well below t, where p(y | x_m) is known better.

    p(x_m | x_s, y) is approximated by a diagonal Gaussian that Adam fits to the prior's transition and to the potential
    |y - H D(x_m)|^2 / 2 sigma^2, with sigma = sigma_y, but at least `sigma_floor` times the operator's norm. Levels are
    DDPM's; m has the share `midpoint` of t's time. Source: Janati et al. 2025, Algorithm 1; gradient steps as in their
    experiments on faces, no warm start, Adam in variance-preserving coordinates. 300 levels take 1764 network calls.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"adjoint", "grad"})
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"lr": (0.01, 0.03, 0.1, 0.3)}
    kind: Literal["mgps"] = "mgps"
    n_levels: int = Field(default=300, ge=4, le=1000)
    midpoint: float = Field(default=0.5, gt=0, lt=1)
    lr: float = Field(default=0.03, gt=0)
    sigma_floor: float = Field(default=0.05, gt=0)
    n_gradient_steps: int = Field(default=2, ge=1)
    n_gradient_steps_boosted: int = Field(default=20, ge=1)

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        floor = self.sigma_floor * measurement.operator.norm.clamp(min=1e-12)
        precision = per_sample(measurement.sigma_y.maximum(floor).square().reciprocal(), noise)
        sigmas = ddpm_sigmas()
        times = self.times()

        x = float(sigmas[times[-1]]) * noise
        denoised = estimate = D(x, float(sigmas[times[-1]]))
        for i in range(len(times) - 1, 0, -1):
            time = times[i - 1]
            s, t, m = (float(sigmas[k]) for k in (times[i], time, int(self.midpoint * time)))
            std = m * math.sqrt(s**2 - m**2) / s
            fit = Fit(measurement, precision, m, _toward(x, denoised, s, m), std)
            start = _toward(x, estimate, s, m)
            x_m = self._draw_midpoint(D, fit, start, self._gradient_steps(i), generators)
            x = _bridge(x, x_m, s, t, m, generators)
            if i > 1:
                estimate = D(x_m, m)
            denoised = D(x, t)
        return denoised

    def times(self) -> list[int]:
        """DDPM times of the states, ascending; the two levels below them are never visited."""
        return torch.linspace(LAST_TIME, 999, self.n_levels - 2, dtype=torch.float64).long().tolist()

    def _gradient_steps(self, i: int) -> int:
        """More of them in the first five transitions, and in every tenth one but the last 20 levels'."""
        level = i + 2
        boosted = level >= self.n_levels - 5 or (level % 10 == 0 and level > 20)
        return self.n_gradient_steps_boosted if boosted else self.n_gradient_steps

    def _draw_midpoint(
        self, D: BoundDenoiser, fit: Fit, start: Tensor, n_steps: int, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Fit N(v, e^(2 rho)) to the midpoint's posterior by Adam with one reparametrised draw a step, then draw."""
        to_ve = math.sqrt(1 + fit.m**2)
        u = (start / to_ve).requires_grad_()
        rho = torch.full_like(start, math.log(fit.std)).requires_grad_()
        adam = torch.optim.Adam([u, rho], lr=self.lr)
        for _ in range(n_steps):
            z = fresh_noise(start, generators)
            d_v, d_rho = divergence_gradient(D, fit, to_ve * u.detach(), rho.detach(), z)
            u.grad, rho.grad = to_ve * d_v, d_rho
            adam.step()
        return to_ve * u.detach() + rho.detach().exp() * fresh_noise(start, generators)


def divergence_gradient(D: BoundDenoiser, fit: Fit, v: Tensor, rho: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient, with respect to v and rho (B, C, H, W), of KL(N(v, e^(2 rho)) | prior) + the potential at
    v + e^rho z.
    """
    H, y = fit.measurement.operator, fit.measurement.y
    denoised, pull_back = D.with_pullback(v + rho.exp() * z, fit.m)
    potential = fit.precision * pull_back(H.H_adjoint(H.H(denoised) - y))
    d_v = (v - fit.mean) / fit.std**2 + potential
    d_rho = (2 * rho).exp() / fit.std**2 - 1 + potential * rho.exp() * z
    return d_v, d_rho


def _toward(x: Tensor, denoised: Tensor, s: float, m: float) -> Tensor:
    """The mean of x_m given x at level s and the clean image."""
    kept = (m / s) ** 2
    return kept * x + (1 - kept) * denoised


def _bridge(x: Tensor, x_m: Tensor, s: float, t: float, m: float, generators: Sequence[torch.Generator]) -> Tensor:
    """A draw of x_t, m <= t < s, from the Brownian bridge between x_m and x at level s."""
    share = (t**2 - m**2) / (s**2 - m**2)
    std = math.sqrt((s**2 - t**2) * share)
    return share * x + (1 - share) * x_m + std * fresh_noise(x, generators)
