"""Multistep samplers of the probability-flow ODE: each step remembers the denoiser's output at the level before."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, EDMGrid, Follows, SampleOutput

# The denoiser's output at the level before, and that level.
Before = tuple[Tensor, float]


class Multistep(EDMGrid):
    """n_steps network calls, for conditional and unconditional denoisers; the last one's output is the image."""

    follows: ClassVar[Follows] = "posterior"

    @abstractmethod
    def _step(self, x: Tensor, denoised: Tensor, sigma: float, t: float, before: Before | None) -> Tensor:
        """From x (B, C, H, W) at sigma to the level t > 0; `before` is None in the first step."""

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
        before: Before | None = None
        for sigma, t in pairwise(sigmas):
            denoised = D(x, sigma)
            x = denoised if t == 0 else self._step(x, denoised, sigma, t, before)
            before = denoised, sigma
        return SampleOutput(x, D.nfe)
