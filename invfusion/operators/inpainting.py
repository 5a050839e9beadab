"""In-painting: what a mask marks is missing."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from invfusion.operators.base import checked_binary, planes
from invfusion.operators.masks import MaskOperator


class Inpainting(MaskOperator):
    """The pixels that a mask marks with 1 (white in a picture) are missing; the others are measured as they are.

    mask: (H, W) for one operator, (B, H, W) or (B, 1, H, W), of bools or of 0 and 1. Measurements have the image's
    shape, with zeros where pixels are missing. `MaskOperator` is the same map told by what is seen.
    Raises `OperatorError` for other values, `ShapeError` where the mask does not fit the image.
    """

    kind: ClassVar[str] = "inpainting"

    def __init__(self, image_shape: Sequence[int], mask: Tensor) -> None:
        super().__init__(image_shape, 1 - checked_binary(planes(mask, "a mask"), "a mask", "1 is missing"))

    def tensors(self) -> dict[str, Tensor]:
        return {"mask": 1 - self.mask}
