"""Blur by a point-spread function, with the boundary that the measurement really had."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import Gain, LinearOperator, Tier, aligned, checked_image_shape, derived

Boundary = Literal["circular", "valid", "reflect", "replicate", "constant"]
# How numpy.pad calls what lies beyond the image; "constant" is zero.
PADDING = {"reflect": "reflect", "replicate": "edge"}


class Spectra(NamedTuple):
    """On half spectra (B, 1 or C, n, m//2+1): the transfer function, and which singular values count as non-zero."""

    transfer: Tensor
    kept: Tensor


class Blur(LinearOperator):
    """y = k * x, the convolution of each channel with a kernel whose centre is its pixel (h//2, w//2).

    kernel: (h, w) for one operator, (B, h, w), or (B, 1 or C, h, w) for kernels of each channel; any side, odd or even,
    not larger than the image. One that sums to one keeps the brightness.
    boundary: what the camera saw beyond the image. "valid": only pixels whose whole neighbourhood lies inside the image
    are measured, so y is smaller, (C, H-h+1, W-w+1): the honest model of a photograph. "circular": the image repeats;
    exact. "reflect" (without the edge pixel), "replicate", "constant" (zero): y has the image's shape.
    cutoff: circular only. Singular values below this share of the largest are zero, in H itself too.

    Everything but "circular" finds its inverses by conjugate gradients, in memory linear in the image.
    Raises `ShapeError` where the kernel does not fit the image.
    """

    kind: ClassVar[str] = "blur"
    kernel: Tensor

    def __init__(
        self, image_shape: Sequence[int], kernel: Tensor, boundary: Boundary = "valid", cutoff: float = 0.0
    ) -> None:
        shape = checked_image_shape(image_shape)
        kernel = _checked_kernel(kernel, shape)
        h, w = kernel.shape[-2:]
        if boundary not in get_args(Boundary):
            raise OperatorError(f"boundary must be one of {', '.join(get_args(Boundary))}, got {str(boundary)[:40]!r}")
        if type(cutoff) not in (int, float) or not 0 <= cutoff < 1 or (cutoff and boundary != "circular"):
            raise OperatorError(f"the cutoff of a circular blur must lie in [0, 1), and be 0 elsewhere, got {cutoff}")
        seen = (shape[1] - h + 1, shape[2] - w + 1) if boundary == "valid" else shape[1:]
        super().__init__(len(kernel), shape, (shape[0], *seen))
        self.boundary, self.cutoff = boundary, float(cutoff)
        # A finite kernel's spectrum is zero at single frequencies at most, so every valid measurement can be reached.
        self.has_full_rows = boundary == "valid"
        self.register_buffer("kernel", kernel)

    @property
    def tier(self) -> Tier:
        return "exact" if self.boundary == "circular" else "iterative"

    @property
    def has_spectrum(self) -> bool:
        return self.boundary == "circular"

    @derived
    def spectra(self) -> Spectra:
        """Of circular convolution on the image's grid; computed in float64, kept in the operator's precision."""
        transfer = _transfer(self.kernel.double(), self.image_shape[1:], centred=True)
        size = transfer.abs()
        largest = size.amax(dim=(-2, -1), keepdim=True)
        # What a convolution in this precision cannot tell from zero.
        smallest = max(self.cutoff, 8 * torch.finfo(self.dtype).eps)
        kept = (size >= smallest * largest) & (size > 0)
        return Spectra((transfer * (kept if self.cutoff else 1)).to(self.dtype.to_complex()), kept)

    @derived
    def transfer(self) -> Tensor:
        """Of the convolution on the padded grid, whose first rows and columns are then thrown away."""
        return _transfer(self.kernel.double(), self._grid, centred=False).to(self.dtype.to_complex())

    @derived
    def padding(self) -> tuple[Tensor, Tensor]:
        """For each row and column of the padded image, the row and column of the image that it shows."""
        mode = PADDING[self.boundary]
        sides = zip(self.image_shape[1:], self._margins, strict=True)
        shown = [np.pad(np.arange(n), margin, mode=mode) for n, margin in sides]  # type: ignore[call-overload]
        rows, columns = (torch.from_numpy(s).to(self.device) for s in shown)
        return rows, columns

    def _forward(self, x: Tensor) -> Tensor:
        if self.boundary == "circular":
            return _filter(x, self.spectra.transfer)
        (h, w), (n, m) = self.kernel.shape[-2:], self._grid
        padded = self._pad(x)
        z = torch.fft.rfft2(padded, s=(n, m)) * aligned(self.transfer, x.ndim)
        whole: Tensor = torch.fft.irfft2(z, s=(n, m))
        return whole[..., h - 1 : padded.shape[-2], w - 1 : padded.shape[-1]]

    def _adjoint(self, y: Tensor) -> Tensor:
        if self.boundary == "circular":
            return _filter(y, self.spectra.transfer.conj())
        (h, w), (n, m) = self.kernel.shape[-2:], self._grid
        z = torch.fft.rfft2(F.pad(y, (w - 1, 0, h - 1, 0)), s=(n, m)) * aligned(self.transfer.conj(), y.ndim)
        whole: Tensor = torch.fft.irfft2(z, s=(n, m))
        return self._fold(whole[..., : y.shape[-2] + h - 1, : y.shape[-1] + w - 1])

    def _pinv(self, y: Tensor) -> Tensor:
        if self.boundary != "circular":
            return super()._pinv(y)
        transfer, kept = self.spectra
        return _filter(y, kept * transfer.conj() / transfer.abs().square().where(kept, 1))

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        if self.boundary != "circular":
            return super()._spectral(y, gain)
        transfer, kept = self.spectra
        return _filter(y, gain(transfer.abs().where(kept, 1)) * kept)

    @derived
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        if self.boundary == "circular":
            return self.spectra.transfer.abs().flatten(1).amax(dim=1)
        return self._power_iteration()

    def attributes(self) -> dict[str, Any]:
        return {"boundary": self.boundary, "cutoff": self.cutoff}

    def prepare(self) -> "Blur":
        _ = self.spectra if self.boundary == "circular" else self.transfer
        return self

    def _preconditioner(self, lam: Tensor) -> Callable[[Tensor], Tensor]:
        """The inverse of the circular H H^T on a grid a little larger than the measurement's (after Strang 1986)."""
        n, m = self.measurement_shape[1:]
        grid = [next_fast_len(s + k) for s, k in zip((n, m), self.kernel.shape[-2:], strict=True)]
        square = _transfer(self.kernel.to(self.dtype), grid, centred=True).abs().square()
        floor = 1e-3 * square.amax(dim=(-2, -1), keepdim=True) * (lam == 0).view(-1, 1, 1, 1)
        inverse = 1 / torch.maximum(square + lam.view(-1, 1, 1, 1), floor)
        return lambda z: _filter(F.pad(z, (0, grid[1] - m, 0, grid[0] - n)), inverse)[..., :n, :m]

    @property
    def _margins(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels (above, below) and (left, right) of the image that its own blur sees."""
        h, w = ((k - 1 - k // 2, k // 2) for k in self.kernel.shape[-2:])
        return h, w

    @property
    def _grid(self) -> tuple[int, int]:
        """Sides of the grid of the Fourier transforms: the image and what was seen around it, rounded up."""
        around = (0, 0) if self.boundary == "valid" else (k - 1 for k in self.kernel.shape[-2:])
        n, m = (next_fast_len(side + more) for side, more in zip(self.image_shape[1:], around, strict=True))
        return n, m

    def _pad(self, x: Tensor) -> Tensor:
        if self.boundary == "valid":
            return x
        if self.boundary == "constant":
            (above, below), (left, right) = self._margins
            return F.pad(x, (left, right, above, below))
        rows, columns = self.padding
        return x.index_select(-2, rows).index_select(-1, columns)

    def _fold(self, padded: Tensor) -> Tensor:
        """The adjoint of `_pad`: what was shown several times is summed."""
        if self.boundary == "valid":
            return padded
        h, w = self.image_shape[1:]
        if self.boundary == "constant":
            (above, _), (left, _) = self._margins
            return padded[..., above : above + h, left : left + w]
        rows, columns = self.padding
        upright = padded.new_zeros(*padded.shape[:-2], h, padded.shape[-1]).index_add(-2, rows, padded)
        return upright.new_zeros(*padded.shape[:-2], h, w).index_add(-1, columns, upright)


def _checked_kernel(kernel: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The kernel as (B, 1 or C, h, w)."""
    if kernel.ndim == 2:
        kernel = kernel[None]
    if kernel.ndim == 3:
        kernel = kernel[:, None]
    if kernel.ndim != 4 or kernel.shape[1] not in (1, shape[0]):
        raise ShapeError(
            f"a blur kernel of images {shape} must be (h, w), (B, h, w) or (B, 1 or {shape[0]}, h, w), "
            f"got {tuple(kernel.shape)}"
        )
    h, w = kernel.shape[-2:]
    if not (1 <= h <= shape[1] and 1 <= w <= shape[2]):
        raise ShapeError(f"a blur kernel {h}x{w} does not fit into images {shape[1]}x{shape[2]}: crop it or resize it")
    return kernel


def _transfer(kernel: Tensor, grid: Sequence[int], *, centred: bool) -> Tensor:
    """The half spectrum of a kernel on a grid, folded where it is larger; its origin at its centre or first pixel."""
    h, w = kernel.shape[-2:]
    n, m = grid
    rows, columns = (torch.arange(k, device=kernel.device) - (k // 2 if centred else 0) for k in (h, w))
    canvas = kernel.new_zeros(*kernel.shape[:-2], n, w).index_add(-2, rows % n, kernel)
    canvas = canvas.new_zeros(*kernel.shape[:-2], n, m).index_add(-1, columns % m, canvas)
    spectrum: Tensor = torch.fft.rfft2(canvas)
    return spectrum


def _filter(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply the half spectrum of x, (B, *K, C, n, m), by factors (B, 1 or C, n, m//2+1)."""
    result: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * aligned(factor, x.ndim), s=x.shape[-2:])
    return result
