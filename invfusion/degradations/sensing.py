"""Compressed sensing: a few random combinations of all pixels."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.operators.compressed_sensing import CompressedSensing, Transform


class RandomSensing(DegradationFamily):
    """The share `rate` of the entries of a fast transform of the image under random signs; see `CompressedSensing`.

    "hadamard" needs a power of two of numbers in an image.
    """

    kind: Literal["compressed_sensing"] = "compressed_sensing"
    rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    transform: Transform = "dct"

    @property
    def is_nonnegative(self) -> bool:
        return False

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> CompressedSensing:
        checked_sides(batch_size, image_shape)
        size = math.prod(image_shape)
        m = max(1, round(self.rate * size))
        signs = torch.ones(batch_size, size)
        chosen = torch.zeros(batch_size, size)
        for i in range(batch_size):
            signs[i, torch.rand(size, generator=generator) < 0.5] = -1
            chosen[i, torch.randperm(size, generator=generator)[:m]] = 1
        return CompressedSensing(image_shape, signs, chosen, self.transform)
