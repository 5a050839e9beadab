"""The operator that measures nothing: with it, a conditional model samples unconditionally."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators.base import Gain, LinearOperator, check_definition


class NullOperator(LinearOperator):
    """H maps to a measurement without entries, (B, *K, 0); H_adjoint and H_pinv give zeros.

    Its tensor `placeholder` (B, 0) carries only the number of samples. Source: paper A.3, H in R^(0 x D).
    """

    kind: ClassVar[str] = "null"
    placeholder: Tensor

    def __init__(self, image_shape: Sequence[int], placeholder: Tensor) -> None:
        if placeholder.ndim != 2 or placeholder.shape[1]:
            raise ShapeError(f"the placeholder of a null operator must be (B, 0), got {tuple(placeholder.shape)}")
        super().__init__(len(placeholder), image_shape, (0,))
        self.register_buffer("placeholder", placeholder)

    def _forward(self, x: Tensor) -> Tensor:
        # A slice, not a fresh tensor, keeps the input in the graph of derivatives.
        return x.flatten(-3)[..., :0]

    def _adjoint(self, y: Tensor) -> Tensor:
        return y.sum(-1)[..., None, None, None] * y.new_zeros(self.image_shape)

    def _pinv(self, y: Tensor) -> Tensor:
        return self._adjoint(y)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:  # noqa: ARG002 - there are no singular values
        return y

    @property
    def norm(self) -> Tensor:
        return torch.zeros(self.batch_size, dtype=self.dtype, device=self.placeholder.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"placeholder": self.placeholder}

    @classmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        check_definition(cls.kind, tensors, ["placeholder"], "tensors")
        check_definition(cls.kind, attributes, [], "attributes")
        return cls(image_shape, tensors["placeholder"])
