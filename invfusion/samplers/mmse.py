"""The posterior mean in one network call."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, Follows, SampleOutput, Sampler


class MMSE(Sampler):
    """D(sigma * noise; sigma, y, H): at a high noise level the input tells nothing, so the estimate is E[x | y].

    With a diffusion model this is the paper's Eq. 8, with the distilled model the estimator trained by Eq. 7. The
    preconditioning lets (sigma_data / sigma)^2 of the input, a 400th of the noise, through to the result.
    """

    follows: ClassVar[Follows] = "mean"
    kind: Literal["mmse"] = "mmse"
    sigma: float = Field(default=100.0, gt=0)

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
        class_labels: Tensor | None,
    ) -> SampleOutput:
        D = BoundDenoiser(denoiser, measurement, class_labels)
        return SampleOutput(D(self.sigma * noise, self.sigma), D.nfe)
