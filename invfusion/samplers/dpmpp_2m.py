"""DPM-Solver++(2M): a second-order multistep sampler for few network calls."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, EDMGrid, Follows, SampleOutput


class DPMpp2M(EDMGrid):
    """The probability-flow ODE in log sigma, with the denoiser extrapolated from two levels; n_steps network calls.

    Works for conditional and unconditional denoisers. Source: Lu et al. 2022, Algorithm 2, in EDM's terms.
    """

    follows: ClassVar[Follows] = "posterior"
    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    n_steps: int = Field(default=20, ge=1)

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
        class_labels: Tensor | None,
    ) -> SampleOutput:
        D = BoundDenoiser(denoiser, measurement, class_labels)
        sigmas = self.levels()
        x = sigmas[0] * noise
        before: tuple[Tensor, float] | None = None
        for sigma, t in pairwise(sigmas):
            denoised = D(x, sigma)
            if t == 0:
                x = denoised
                break
            h = math.log(sigma / t)
            x = (t / sigma) * x - math.expm1(-h) * _extrapolated(denoised, h, before)
            before = denoised, h
        return SampleOutput(x, D.nfe)


def _extrapolated(denoised: Tensor, h: float, before: tuple[Tensor, float] | None) -> Tensor:
    """The denoiser's output half a step ahead, on the line through this level's and the one before."""
    if before is None:
        return denoised
    previous, h_previous = before
    return denoised + h / (2 * h_previous) * (denoised - previous)
