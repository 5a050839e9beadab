"""No measurement at all: the family that teaches a conditional model to sample unconditionally."""

from collections.abc import Sequence
from typing import Literal

import torch

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.operators.null import NullOperator


class Null(DegradationFamily):
    """Every draw is the operator H in R^(0 x D). Source: paper 3.4 and A.3."""

    kind: Literal["null"] = "null"

    def sample(
        self,
        batch_size: int,
        image_shape: Sequence[int],
        generator: torch.Generator,  # noqa: ARG002 - nothing is random here
    ) -> NullOperator:
        checked_sides(batch_size, image_shape)
        return NullOperator(image_shape, torch.zeros(batch_size, 0))
