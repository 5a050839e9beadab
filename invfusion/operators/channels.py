"""Fewer channels than the image has: gray pictures of coloured scenes, and the mosaic of a camera's sensor."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import Gain, LinearOperator, checked_image_shape, derived

# Luma of ITU-R BT.601, as Pillow's mode "L".
LUMA = (0.299, 0.587, 0.114)
CHANNELS = "RGB"


class Grayscale(LinearOperator):
    """y = the weighted sum of the channels, (1, H, W). Undoing it is colorisation.

    weights: one per channel; by default the luma of ITU-R BT.601 for three channels, and their mean for other numbers.
    """

    kind: ClassVar[str] = "grayscale"

    def __init__(self, image_shape: Sequence[int], weights: Sequence[float] | None = None, batch_size: int = 1) -> None:
        c, h, w = checked_image_shape(image_shape)
        super().__init__(batch_size, (c, h, w), (1, h, w))
        chosen = weights if weights is not None else LUMA if c == len(LUMA) else [1 / c] * c
        numbers = isinstance(chosen, list | tuple) and all(type(v) in (int, float) for v in chosen)
        if not numbers or len(chosen) != c or not 0 < sum(v * v for v in chosen) < float("inf"):
            raise OperatorError(f"grayscale needs {c} weights, finite and not all zero, got {str(weights)[:80]}")
        self.weights = tuple(float(v) for v in chosen)

    @derived
    def column(self) -> Tensor:
        """The weights, (C, 1, 1)."""
        return torch.tensor(self.weights, dtype=torch.float64, device=self.device).to(self.dtype).view(-1, 1, 1)

    def _forward(self, x: Tensor) -> Tensor:
        return (x * self.column.to(x.dtype)).sum(dim=-3, keepdim=True)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.column.to(y.dtype)

    def _pinv(self, y: Tensor) -> Tensor:
        return y * (self.column / self.column.square().sum()).to(y.dtype)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        factors = gain(self.norm.expand(len(y)))
        return y * factors.view(-1, *[1] * (y.ndim - 1)).to(y.dtype)

    @property
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        return self.column.square().sum().sqrt().expand(self.batch_size)

    def attributes(self) -> dict[str, Any]:
        return {"weights": list(self.weights)}


class Bayer(LinearOperator):
    """y = one of the three channels at every pixel, (1, H, W), after a sensor's 2 x 2 pattern. Undoing it demosaics.

    pattern: the colours of the pixels (0, 0), (0, 1), (1, 0), (1, 1), each of R, G, B.
    """

    kind: ClassVar[str] = "bayer"

    def __init__(self, image_shape: Sequence[int], pattern: str = "RGGB", batch_size: int = 1) -> None:
        c, h, w = checked_image_shape(image_shape)
        if c != len(CHANNELS):
            raise ShapeError(f"a Bayer mosaic needs images of three channels, got {c}")
        if not isinstance(pattern, str) or len(pattern) != 4 or set(pattern) - set(CHANNELS):
            raise OperatorError(f"pattern must be four letters of {CHANNELS}, such as RGGB, got {str(pattern)[:20]!r}")
        super().__init__(batch_size, (c, h, w), (1, h, w))
        self.pattern = pattern

    @derived
    def sensor(self) -> Tensor:
        """(C, H, W): 1 where a pixel sees the channel."""
        _, h, w = self.image_shape
        seen = torch.tensor([CHANNELS.index(letter) for letter in self.pattern], device=self.device).view(2, 2)
        tiled = seen.repeat((h + 1) // 2, (w + 1) // 2)[:h, :w]
        return (tiled == torch.arange(3, device=self.device).view(3, 1, 1)).to(self.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        return (x * self.sensor.to(x.dtype)).sum(dim=-3, keepdim=True)

    def _adjoint(self, y: Tensor) -> Tensor:
        return y * self.sensor.to(y.dtype)

    def _pinv(self, y: Tensor) -> Tensor:
        return self._adjoint(y)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        return y * gain(self.norm.expand(len(y))).view(-1, *[1] * (y.ndim - 1)).to(y.dtype)

    @property
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,): every pixel is seen once."""
        return torch.ones(self.batch_size, dtype=self.dtype, device=self.device)

    def attributes(self) -> dict[str, Any]:
        return {"pattern": self.pattern}
