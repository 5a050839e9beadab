"""Down-sampling by a whole factor, antialiased as Pillow and torch do it; exact, since it works by rows and columns."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import Gain, LinearOperator, checked_image_shape, derived

Filter = Literal["bicubic", "area", "lanczos", "nearest"]

# Pixels of an axis, whose matrix is dense.
MAX_SIDE = 2**14


class Axis(NamedTuple):
    """The singular value decomposition U, q, V^T of the map of one axis, n pixels to m."""

    U: Tensor
    q: Tensor
    Vt: Tensor


class Downsampling(LinearOperator):
    """y = every channel reduced by `factor` along both sides, (C, H/factor, W/factor).

    filter: "bicubic" (a = -1/2), "area" (the mean of each square), "lanczos" (3 lobes): widened by the factor against
    aliases, cut off at the image's edges and made to sum to one there; equal to Pillow's `resize` and to torch's
    `interpolate(antialias=True)`. "nearest": the pixel right of and below the centre of each square, as Pillow.
    batch_size: all samples are alike.

    With the matrices of both axes A, B and their singular value decompositions, H = A (x) B has the products of their
    singular values. Raises `ShapeError` where the factor does not divide the sides.
    """

    kind: ClassVar[str] = "downsampling"

    def __init__(
        self, image_shape: Sequence[int], factor: int, filter: Filter = "bicubic", batch_size: int = 1
    ) -> None:
        c, h, w = checked_image_shape(image_shape)
        if type(factor) is not int or factor < 1:
            raise OperatorError(f"the factor of down-sampling must be a whole number of at least 1, got {factor!r}")
        if filter not in get_args(Filter):
            raise OperatorError(f"filter must be one of {', '.join(get_args(Filter))}, got {str(filter)[:40]!r}")
        if max(h, w) > MAX_SIDE:
            raise ShapeError(f"down-sampling keeps the matrix of an axis, of at most {MAX_SIDE} pixels, got {h}x{w}")
        if h % factor or w % factor:
            crop = f"{h - h % factor}x{w - w % factor}"
            raise ShapeError(f"the factor {factor} does not divide both sides of images {h}x{w}: crop them to {crop}")
        super().__init__(batch_size, (c, h, w), (c, h // factor, w // factor))
        self.factor, self.filter = factor, filter

    @derived
    def matrices(self) -> tuple[Tensor, Tensor]:
        """Those of rows (H/factor, H) and columns (W/factor, W), in the operator's precision."""
        h, w = (
            resampling_matrix(n, self.factor, self.filter).to(self.device, self.dtype) for n in self.image_shape[1:]
        )
        return h, w

    @derived
    def axes(self) -> tuple[Axis, Axis]:
        """Their decompositions, which the inverses alone need; computed in float64, kept in the operator's one."""
        h, w = (self._axis(n) for n in self.image_shape[1:])
        return h, w

    def _axis(self, n: int) -> Axis:
        matrix = resampling_matrix(n, self.factor, self.filter)
        # All filters are well-conditioned: squaring loses nothing, and is a hundred times faster on a large axis.
        squares, U = torch.linalg.eigh(matrix @ matrix.mT)
        q = squares.sqrt()
        return Axis(*(part.to(self.device, self.dtype) for part in (U, q, U.mT @ matrix / q[:, None])))

    def _forward(self, x: Tensor) -> Tensor:
        rows, columns = (matrix.to(x.dtype) for matrix in self.matrices)
        return rows @ x @ columns.mT

    def _adjoint(self, y: Tensor) -> Tensor:
        rows, columns = (matrix.to(y.dtype) for matrix in self.matrices)
        return rows.mT @ y @ columns

    def _pinv(self, y: Tensor) -> Tensor:
        rows, columns = self.axes
        inner = rows.U.mT.to(y.dtype) @ y @ columns.U.to(y.dtype)
        return rows.Vt.mT.to(y.dtype) @ (inner / self._singular.to(y.dtype)) @ columns.Vt.to(y.dtype)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        rows, columns = (axis.U.to(y.dtype) for axis in self.axes)
        inner = rows.mT @ y @ columns
        factors = gain(self._singular.expand(len(y), 1, -1, -1)).to(y.dtype)
        factors = factors.reshape(len(y), *[1] * (y.ndim - 3), *factors.shape[-2:])
        return rows @ (inner * factors) @ columns.mT

    @property
    def _singular(self) -> Tensor:
        """(H/factor, W/factor); all filters have full rank."""
        rows, columns = self.axes
        return rows.q[:, None] * columns.q

    @property
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        return self._singular.max().expand(self.batch_size)

    def attributes(self) -> dict[str, Any]:
        return {"factor": self.factor, "filter": self.filter}

    def prepare(self) -> "Downsampling":
        _ = self.matrices, self.axes
        return self


def resampling_matrix(n: int, factor: int, filter: Filter) -> Tensor:
    """(n // factor, n) float64: the weights of an axis's pixels in each of its reduced pixels; rows sum to one."""
    centres = (torch.arange(n // factor, dtype=torch.float64) + 0.5)[:, None] * factor
    pixels = torch.arange(n, dtype=torch.float64)
    if filter == "nearest":
        return (pixels == centres.floor()).double()
    weights = _SHAPES[filter]((pixels + 0.5 - centres) / factor)
    return weights / weights.sum(dim=1, keepdim=True)


def _bicubic(t: Tensor) -> Tensor:
    """Keys 1981 with a = -1/2."""
    t, a = t.abs(), -0.5
    inside = ((a + 2) * t - (a + 3)) * t * t + 1
    outside = (((t - 5) * t + 8) * t - 4) * a
    return torch.where(t < 1, inside, torch.where(t < 2, outside, 0))


def _area(t: Tensor) -> Tensor:
    return ((t > -0.5) & (t <= 0.5)).double()


def _lanczos(t: Tensor) -> Tensor:
    return torch.where(t.abs() < 3, torch.sinc(t) * torch.sinc(t / 3), 0)


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _bicubic, "area": _area, "lanczos": _lanczos}
