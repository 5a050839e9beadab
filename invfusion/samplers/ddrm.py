"""DDRM: zero-shot restoration with an unconditional denoiser."""

import math
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
    filtered,
    fresh_noise,
    per_sample,
)


class _DDRM(RestoringSampler):
    """The algorithm; `DDRM` and `UnrolledDDRM` differ by the network that they are for."""

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    requires_if_noisy: ClassVar[frozenset[str]] = frozenset({"spectral"})
    variant: AlgorithmVariant = "original"
    n_steps: int = Field(default=25, ge=1)
    eta: float = Field(default=0.85, ge=0, le=1)
    eta_b: float = Field(default=1.0, ge=0, le=1)

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        sigmas: list[float] = edm_sigmas(self.n_steps).tolist()
        x = self._start(measurement, noise, sigmas[0])
        step = self._step if self.variant == "original" else self._published_step
        for sigma, t in pairwise(sigmas):
            z = fresh_noise(x, generators) if t > 0 else torch.zeros_like(x)
            x = step(measurement, x, D(x, sigma), sigma, t, z)
        return x

    def _start(self, measurement: Measurement, noise: Tensor, sigma: float) -> Tensor:
        """H_pinv y plus noise, of level sigma in total: the measurement's own noise is part of it."""
        if self.variant == "published":
            return measurement.H_pinv_y + sigma * noise
        H, y = measurement.operator, measurement.y
        mean = filtered(measurement, y, lambda s: (s < sigma).to(y.dtype))
        less = filtered(measurement, H.H(noise), lambda s: torch.where(s < sigma, _rest(sigma, s) - sigma, 0.0))
        return sigma * noise + H.H_pinv(mean + less)

    def _step(self, measurement: Measurement, x: Tensor, denoised: Tensor, sigma: float, t: float, z: Tensor) -> Tensor:
        H, keep = measurement.operator, math.sqrt(1 - self.eta**2)
        free = denoised + t * (keep * (x - denoised) / sigma + self.eta * z)

        def pull(s: Tensor) -> Tensor:
            return torch.where(s <= t, self.eta_b, keep * t / s.clamp(min=1e-12))

        def spread(s: Tensor) -> Tensor:
            return torch.where(s <= t, _rest(t, self.eta_b * s), self.eta * t)

        towards_y = filtered(measurement, measurement.y - H.H(denoised), pull)
        seen = H.H(denoised) + towards_y + filtered(measurement, H.H(z), spread)
        return free + H.H_pinv(seen - H.H(free))

    def _published_step(
        self, measurement: Measurement, x: Tensor, denoised: Tensor, sigma: float, t: float, z: Tensor
    ) -> Tensor:
        H, keep = measurement.operator, math.sqrt(1 - self.eta**2)
        known, sigma_y = measurement.H_pinv_y, per_sample(measurement.sigma_y, x)
        z_seen = H.H_pinv(H.H(z))
        free = denoised + t * (keep * (x - denoised) / sigma + self.eta * z)
        above = known + (t - sigma_y) * z_seen
        below = t * (keep * (known - denoised) / sigma_y.clamp(min=1e-12) + self.eta * z_seen)
        return free - H.H_pinv(H.H(free)) + torch.where(sigma_y <= t, above, below)


class DDRM(_DDRM):
    """Denoising diffusion restoration: y replaces the denoiser's estimate along every singular vector of H.

    Along one of singular value q, H_pinv y has the noise s = sigma_y / q. While the level t is above s, the next state
    is drawn around H_pinv y; below, the denoiser's estimate is pulled towards it. In the null space, x keeps the share
    1 - eta^2 of its noise. The denoiser sees neither H nor y. Source: Kawar et al. 2022, Eqs. 7 and 8; paper A.4.

    published: the noisy form of the paper's code, with wrong means and deviations; without noise it is the original.
    """

    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"eta": (0.5, 0.7, 0.85, 1.0)}
    kind: Literal["ddrm"] = "ddrm"


class UnrolledDDRM(_DDRM):
    """DDRM in a few steps, for a network that was trained through all of them at once (paper, appendix D.5)."""

    keeps_graph: ClassVar[bool] = True

    kind: Literal["unrolled_ddrm"] = "unrolled_ddrm"
    n_steps: int = Field(default=10, ge=1)


def _rest(total: float, part: Tensor) -> Tensor:
    """The standard deviation that is missing from `part` to `total`."""
    return (total**2 - part.square()).clamp(min=0).sqrt()
