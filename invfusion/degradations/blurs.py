"""Blur by lenses: Gaussian, and out of focus."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.errors import ConfigError
from invfusion.operators.blur import Blur, Boundary

Width = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A circular blur of a smooth kernel has an exact inverse where weak frequencies are none in H either.
CUTOFF = 1e-2


class _LensBlur(DegradationFamily):
    """A kernel of (2 radius + 1)^2 pixels whose width, in pixels, is uniform over `width`; boundaries are `Blur`'s."""

    width: tuple[Width, Width]
    radius: int = Field(default=3, ge=1)
    boundary: Boundary = "circular"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.width[0] > self.width[1]:
            raise ValueError(f"width must be (low, high) with low <= high, got {self.width}")
        return self

    def check(self, image_shape: Sequence[int]) -> None:
        h, w = checked_sides(1, image_shape)
        if min(h, w) < 2 * self.radius + 1:
            raise ConfigError(f"a kernel of radius {self.radius} does not fit images {h}x{w}: lower 'radius'")

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> Blur:
        checked_sides(batch_size, image_shape)
        self.check(image_shape)
        low, high = self.width
        width = low + (high - low) * torch.rand(batch_size, 1, 1, generator=generator, dtype=torch.float64)
        axis = torch.arange(-self.radius, self.radius + 1, dtype=torch.float64)
        kernel = self._profile((axis[:, None].square() + axis.square()).sqrt(), width)
        kernel = (kernel / kernel.sum(dim=(1, 2), keepdim=True)).float()
        return Blur(image_shape, kernel, self.boundary, CUTOFF if self.boundary == "circular" else 0.0)

    @abstractmethod
    def _profile(self, distance: Tensor, width: Tensor) -> Tensor:
        """Weights (B, n, n) at the distances (n, n) from the centre, for widths (B, 1, 1)."""


class GaussianBlur(_LensBlur):
    """width: the standard deviation of the Gaussian."""

    kind: Literal["gaussian_blur"] = "gaussian_blur"
    width: tuple[Width, Width] = (0.5, 1.5)

    def _profile(self, distance: Tensor, width: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / width).square())


class DefocusBlur(_LensBlur):
    """width: the radius of the disk that a point becomes; its edge pixels are covered in part."""

    kind: Literal["defocus_blur"] = "defocus_blur"
    width: tuple[Width, Width] = (1.0, 3.0)

    def _profile(self, distance: Tensor, width: Tensor) -> Tensor:
        return (width + 0.5 - distance).clamp(0, 1)
