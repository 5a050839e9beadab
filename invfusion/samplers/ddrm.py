"""DDRM: zero-shot restoration with an unconditional denoiser."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.diffusion.schedules import edm_sigmas
from invfusion.operators import LinearOperator, Measurement
from invfusion.samplers.base import BoundDenoiser, SampleOutput, Sampler, fresh_noise


class DDRMConfig(Sampler):
    """Denoising diffusion restoration in its form that uses only H and its pseudo-inverse, with eta_b = 1.

    Exact for noiseless measurements; for noisy ones, exact where all non-zero singular values of H are 1 and an
    approximation elsewhere. The denoiser sees neither H nor y. Source: paper A.4, with the published code's errors in
    the noisy branch corrected (methods 5.1).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    kind: Literal["ddrm"] = "ddrm"
    n_steps: int = Field(default=25, ge=1)
    eta: float = Field(default=0.85, ge=0, le=1)

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
    ) -> SampleOutput:
        assert measurement is not None, "checked by `requires`"
        D = BoundDenoiser(denoiser, None, class_labels)
        H = measurement.operator
        known = measurement.H_pinv_y
        sigma_y = measurement.sigma_y.to(noise.dtype).view(-1, 1, 1, 1)
        keep = math.sqrt(1 - self.eta**2)

        sigmas = edm_sigmas(self.n_steps).tolist()
        x = known + _noise_around_known(H, noise, sigmas[0], sigma_y)
        for sigma, t in pairwise(sigmas):
            denoised = D(x, sigma)
            z = fresh_noise(x, generators) if t > 0 else torch.zeros_like(x)
            unknown = denoised + t * (keep * (x - denoised) / sigma + self.eta * z)
            # Where the measurement is more precise than the noise level, it replaces the denoiser's opinion.
            replaced = known + (t**2 - sigma_y**2).clamp(min=0).sqrt() * z
            pulled = denoised + t * (keep * (known - denoised) / sigma_y.clamp(min=1e-12) + self.eta * z)
            seen = torch.where(t >= sigma_y, replaced, pulled)
            x = unknown + _range_part(H, seen - unknown)
        return SampleOutput(x, D.nfe)


def _noise_around_known(H: LinearOperator, noise: Tensor, sigma: float, sigma_y: Tensor) -> Tensor:
    """Initial noise: level sigma in the null space of H; in its range the measurement's own noise is part of it."""
    in_range = (sigma**2 - sigma_y**2).clamp(min=0).sqrt()
    return sigma * noise + _range_part(H, (in_range - sigma) * noise)


def _range_part(H: LinearOperator, v: Tensor) -> Tensor:
    """The projection of v on the row space of H, H_pinv H v."""
    return H.H_pinv(H.H(v))
