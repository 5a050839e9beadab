"""The posterior's score by denoising at a shifted pivot, with a denoiser that knows isotropic noise alone."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, EDMGrid, RestoringSampler, damped


def pivot(measurement: Measurement, x: Tensor, sigma: float) -> Tensor:
    """What x (B, C, H, W) at noise level sigma and y say of the clean image together, before any prior.

    mu* = x + H_pinv spectral(y - H x, q^2 / (q^2 + sigma_y^2 / sigma^2)), whose noise is anisotropic: sigma where
    nothing is seen, and no more than that of y where something is. Without noise it is `project`.
    """
    return x + damped(measurement, measurement.y - measurement.operator.H(x), sigma**2)


class Pivot(EDMGrid, RestoringSampler):
    """Heun's method on the probability-flow ODE of the posterior, whose denoiser is asked at mu*; 2 n_steps - 1 calls.

    The posterior's score is (E[x | mu*] - x_sigma) / sigma^2, exactly, where the expectation is over the noise
    covariance S of mu*. Source: Mammadov et al. 2026 (arXiv 2606.17048), who train a network to denoise such inputs.
    A network trained on isotropic noise, as here, knows another score; Tweedie's formula mu* + S (D(mu*) - mu*) /
    sigma^2 then leaves to y what y determines: the approximation that this sampler makes.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    requires_if_noisy: ClassVar[frozenset[str]] = frozenset({"damped"})
    kind: Literal["pivot"] = "pivot"
    n_steps: int = Field(default=32, ge=1)

    def _restore(
        self,
        D: BoundDenoiser,
        measurement: Measurement,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
    ) -> Tensor:
        sigmas = self.levels()
        x = sigmas[0] * noise
        for sigma, t in pairwise(sigmas):
            slope = (x - _estimate(D, measurement, x, sigma)) / sigma
            there = x + (t - sigma) * slope
            if t > 0:
                slope = (slope + (there - _estimate(D, measurement, there, t)) / t) / 2
            x = x + (t - sigma) * slope
        return x


def _estimate(D: BoundDenoiser, measurement: Measurement, x: Tensor, sigma: float) -> Tensor:
    mu = pivot(measurement, x, sigma)
    denoised = D(mu, sigma)
    return denoised + damped(measurement, measurement.operator.H(mu - denoised), sigma**2)
