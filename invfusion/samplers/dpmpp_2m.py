"""DPM-Solver++(2M): a second-order multistep sampler for few network calls."""

import math
from typing import Literal

from pydantic import Field
from torch import Tensor

from invfusion.samplers.multistep import Before, Multistep


class DPMpp2M(Multistep):
    """The probability-flow ODE in log sigma, with the denoiser extrapolated from two levels; n_steps network calls.

    Works for conditional and unconditional denoisers. Source: Lu et al. 2022, Algorithm 2, in EDM's terms.
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"
    n_steps: int = Field(default=20, ge=1)

    def _step(self, x: Tensor, denoised: Tensor, sigma: float, t: float, before: Before | None) -> Tensor:
        h = math.log(sigma / t)
        return (t / sigma) * x - math.expm1(-h) * _extrapolated(denoised, sigma, h, before)


def _extrapolated(denoised: Tensor, sigma: float, h: float, before: Before | None) -> Tensor:
    """The denoiser's output half a step ahead, on the line through this level's and the one before."""
    if before is None:
        return denoised
    previous, higher = before
    return denoised + h / (2 * math.log(higher / sigma)) * (denoised - previous)
