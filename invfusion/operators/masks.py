"""Masks: some pixels are seen, the others are not. In-painting and out-painting of every shape."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators.base import Gain, LinearOperator, aligned, checked_binary, planes


class MaskOperator(LinearOperator):
    """H = H_adjoint = H_pinv = multiplication by a 0/1 mask that the channels share; hidden pixels stay as zeros.

    mask: (B, 1, H, W). Measurements have the image's shape. Source: paper A.3.1 and A.3.4.
    """

    kind: ClassVar[str] = "mask"
    mask: Tensor

    def __init__(self, image_shape: Sequence[int], mask: Tensor) -> None:
        mask = checked_binary(planes(mask, "a mask"), "a mask", "1 is seen")
        super().__init__(len(mask), image_shape, image_shape)
        expected = (self.batch_size, 1, *self.image_shape[1:])
        if tuple(mask.shape) != expected:
            raise ShapeError(f"the mask of images {self.image_shape} must be (B, 1, H, W), got {tuple(mask.shape)}")
        self.register_buffer("mask", mask)

    def _forward(self, x: Tensor) -> Tensor:
        return x * aligned(self.mask, x.ndim).to(x.dtype)

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def _pinv(self, y: Tensor) -> Tensor:
        return self._forward(y)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        mask = self.mask.to(self.dtype)
        return y * aligned(mask * gain(torch.ones_like(mask)), y.ndim).to(y.dtype)

    @property
    def norm(self) -> Tensor:
        return self.mask.flatten(1).amax(dim=1).to(self.dtype)

    def check_values(self) -> None:
        checked_binary(self.mask, "a mask", "1 is seen")
