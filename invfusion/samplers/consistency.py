"""Samples of a consistency model, in as many calls as one likes to pay for."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.diffusion.schedules import edm_sigmas
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, SampleOutput, Sampler, fresh_noise


class Consistency(Sampler):
    """Denoise, add the noise of the next level, denoise again: n_steps calls, from sigma_max down to `sigma_last`.

    The network must be a consistency model, which sends every point of a trajectory of the probability-flow ODE to its
    end; a mere denoiser sends it to the mean of all images that are possible there, and the samples vary too little.
    Source: Song et al. 2023 (arXiv 2303.01469), Algorithm 1; the second of two levels near that of Geng et al. 2024.
    """

    kind: Literal["consistency"] = "consistency"
    n_steps: int = Field(default=2, ge=1)
    sigma_max: float = Field(default=80.0, gt=0)
    sigma_last: float = Field(default=0.8, gt=0)

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,
    ) -> SampleOutput:
        D = BoundDenoiser(denoiser, measurement, class_labels)
        sigmas: list[float] = edm_sigmas(self.n_steps, self.sigma_max, self.sigma_last).tolist()
        x = D(sigmas[0] * noise, sigmas[0])
        for sigma in sigmas[1:-1]:
            x = D(x + sigma * fresh_noise(x, generators), sigma)
        return SampleOutput(x, D.nfe)
