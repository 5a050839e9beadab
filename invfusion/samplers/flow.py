"""The straight interpolation's own sampler."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, Follows, SampleOutput, Sampler


class Flow(Sampler):
    """Heun's method on dx/dt = v(x_t), in even steps of t from noise (t = 1) to the image (t = 0); 2 n_steps - 1 calls.

    x_t = (1 - t) x + t n is the variance-exploding x_sigma times 1 - t, with sigma = t / (1 - t), so that every
    denoiser gives the velocity (x_t - D) / t; the first t is that of `sigma_max`. Source: Lipman et al. 2023
    (arXiv 2210.02747); Liu et al. 2023 (arXiv 2209.03003).
    """

    follows: ClassVar[Follows] = "posterior"
    kind: Literal["flow"] = "flow"
    n_steps: int = Field(default=32, ge=1)
    sigma_max: float = Field(default=80.0, gt=0)

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
        class_labels: Tensor | None,
    ) -> SampleOutput:
        D = BoundDenoiser(denoiser, measurement, class_labels)
        first = self.sigma_max / (1 + self.sigma_max)
        times = [first * (1 - i / self.n_steps) for i in range(self.n_steps)] + [0.0]
        x = first * noise
        for t, s in pairwise(times):
            velocity = _velocity(D, x, t)
            there = x + (s - t) * velocity
            if s > 0:
                velocity = (velocity + _velocity(D, there, s)) / 2
            x = x + (s - t) * velocity
        return SampleOutput(x, D.nfe)


def _velocity(D: BoundDenoiser, x: Tensor, t: float) -> Tensor:
    return (x - D(x / (1 - t), t / (1 - t))) / t
