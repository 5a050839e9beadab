"""InDI: inversion by direct iteration, from the measurement to the image in small steps."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, Follows, RestoringSampler


class InDI(RestoringSampler):
    """From H_pinv y plus a little noise, each step goes the share delta / t of the way to the network's estimate.

    For models trained by `InDILoss` with the same epsilon: the network sees x_t and, in the place of sigma, t from 1 to
    delta = 1 / n_steps. Source: Delbracio & Milanfar 2023, Algorithm 1, without fresh noise; the paper takes 50 steps.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    follows: ClassVar[Follows] = "nothing"
    kind: Literal["indi"] = "indi"
    n_steps: int = Field(default=50, ge=1)
    epsilon: float = Field(default=0.01, ge=0)

    def _restore(
        self,
        D: BoundDenoiser,
        measurement: Measurement,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
    ) -> Tensor:
        x = measurement.H_pinv_y + self.epsilon * noise
        for k in range(self.n_steps, 0, -1):
            x = x + (D(x, k / self.n_steps) - x) / k
        return x
