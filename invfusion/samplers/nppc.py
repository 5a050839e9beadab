"""The posterior mean with the directions in which the posterior varies most."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.components import gram_schmidt
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, Follows, SampleOutput, Sampler


class NPPC(Sampler):
    """Neural posterior principal components in one call of the distilled `nppc` model.

    x is the posterior mean; `components` are orthonormal, sorted by the standard deviation along each, `stds`.
    Source: paper, section 5.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"components"})
    follows: ClassVar[Follows] = "mean"
    kind: Literal["nppc"] = "nppc"
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
        mean, raw = D.components(self.sigma * noise, self.sigma)
        directions, stds = gram_schmidt(raw)
        stds, order = stds.sort(dim=1, descending=True, stable=True)
        directions = directions.take_along_dim(order[:, :, None, None, None], dim=1)
        return SampleOutput(mean, D.nfe, directions, stds)
