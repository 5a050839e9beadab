"""The second-order sampler of EDM, for conditional and unconditional denoisers."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, EDMGrid, Follows, SampleOutput, fresh_noise


class Heun(EDMGrid):
    """Heun's method on the probability-flow ODE, with optional churn; 2 * n_steps - 1 network calls.

    Churn (`S_churn` > 0) raises the noise level by fresh noise before a step, where the level lies in [S_min, S_max].
    Source: EDM, Algorithm 2; the paper runs it deterministically with 32 levels (63 calls).
    """

    follows: ClassVar[Follows] = "posterior"
    kind: Literal["heun"] = "heun"
    n_steps: int = Field(default=32, ge=1)
    S_churn: float = Field(default=0.0, ge=0)
    S_min: float = Field(default=0.0, ge=0)
    S_max: float = Field(default=math.inf, ge=0)
    S_noise: float = Field(default=1.0, ge=0)

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
    ) -> SampleOutput:
        D = BoundDenoiser(denoiser, measurement, class_labels)
        sigmas = self.levels()
        x = sigmas[0] * noise
        for sigma, sigma_next in pairwise(sigmas):
            x_hat, sigma_hat = self._churn(x, sigma, generators)
            slope = (x_hat - D(x_hat, sigma_hat)) / sigma_hat
            x = x_hat + (sigma_next - sigma_hat) * slope
            if sigma_next > 0:
                slope_next = (x - D(x, sigma_next)) / sigma_next
                x = x_hat + (sigma_next - sigma_hat) * (slope + slope_next) / 2
        return SampleOutput(x, D.nfe)

    def _churn(self, x: Tensor, sigma: float, generators: Sequence[torch.Generator]) -> tuple[Tensor, float]:
        """Raise the noise level by a factor 1 + gamma; noise is drawn only where gamma > 0."""
        gamma = min(self.S_churn / self.n_steps, math.sqrt(2) - 1) if self.S_min <= sigma <= self.S_max else 0.0
        if gamma == 0:
            return x, sigma
        sigma_hat = (1 + gamma) * sigma
        return x + math.sqrt(sigma_hat**2 - sigma**2) * self.S_noise * fresh_noise(x, generators), sigma_hat
