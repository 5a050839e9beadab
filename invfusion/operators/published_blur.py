"""The strided blur of the published code, whose measurements are spectra: what networks trained there were shown.

Source: noamelata/InvFusion, degradation.py. Its differences from `StridedConvolution`, which is this project's own: the
image is padded with zeros to twice its sides, so the blur does not wrap around; measurements are unnormalised Fourier
coefficients; and what stands for the inverse undoes the padded map and crops, which no longer undoes H.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import LinearOperator, aligned, checked_image_shape, derived, planes

# Of the range of the kernel's spectrum: smaller coefficients are zero in H, and what lies below in the mean of |K|^2
# over aliases, at most 1 / stride^2, is not inverted: singular values below 0.01 * stride of the largest.
CUTOFF = 1e-4


class Spectra(NamedTuple):
    """Factors on the padded grid, its rows and columns split into aliases, (B, 1, s, 2H/s, s, 2W/s), complex.

    forward: of H; back: of the published inverse.
    """

    forward: Tensor
    back: Tensor


class PublishedBlur(LinearOperator):
    """y = the spectrum of every s-th pixel of the zero-padded correlation of each channel with the sample's kernel.

    kernel: (h, w) for one operator, (B, h, w) or (B, 1, h, w); published: half the image's sides, non-negative, summing
    to one. Measurements: (C, 2H/s, 2W/s, 2), real and imaginary parts of unnormalised coefficients: up to H W / s^2
    times a pixel, so sigma_y means another thing here than elsewhere.

    `back_project` is the published inverse, which networks were trained with; `as_image` too. `H_pinv` is the inverse
    that it is not, found by iterations, slowly where the blur is strong.
    Raises `ShapeError` where the kernel does not fit or the stride does not divide the image's sides.
    """

    kind: ClassVar[str] = "published_blur"
    kernel: Tensor

    def __init__(self, image_shape: Sequence[int], kernel: Tensor, stride: int) -> None:
        c, h, w = checked_image_shape(image_shape)
        kernel = planes(kernel, "a blur kernel")
        if type(stride) is not int or stride < 1 or h % stride or w % stride:
            raise ShapeError(f"stride {stride!r} must be a whole number that divides both sides of the image {h}x{w}")
        if kernel.shape[1] != 1 or not (1 <= kernel.shape[2] <= h and 1 <= kernel.shape[3] <= w):
            raise ShapeError(f"a blur kernel {tuple(kernel.shape)} does not fit into images {h}x{w}")
        super().__init__(len(kernel), image_shape, (c, 2 * h // stride, 2 * w // stride, 2))
        self.stride = stride
        self.register_buffer("kernel", kernel)
        if bool((self.kernel.abs().flatten(1).amax(1) == 0).any()):
            raise OperatorError("a blur kernel is zero everywhere: nothing would be measured")

    @derived
    def spectra(self) -> Spectra:
        _, h, w = self.image_shape
        top, left = ((n - k) // 2 for n, k in zip((h, w), self.kernel.shape[2:], strict=True))
        corner = F.pad(self.kernel.to(self.dtype), (left, 2 * w - left - self.kernel.shape[3], top, 0))
        transfer = torch.fft.fft2(corner, s=(2 * h, 2 * w)).conj()
        size = transfer.abs()
        threshold = CUTOFF * (size.amax((-2, -1), keepdim=True) - size.amin((-2, -1), keepdim=True))
        forward = self._aliases(transfer * (size > threshold))
        energy = forward.abs().square().mean((2, 4), keepdim=True)
        kept = energy > threshold[..., None, None]
        return Spectra(forward, forward.conj() * kept / energy.where(kept, 1))

    def _aliases(self, spectrum: Tensor) -> Tensor:
        """(..., 2H, 2W) -> (..., s, 2H/s, s, 2W/s)."""
        _, n, m, _ = self.measurement_shape
        return spectrum.reshape(*spectrum.shape[:-2], self.stride, n, self.stride, m)

    def _forward(self, x: Tensor) -> Tensor:
        _, h, w = self.image_shape
        z = self._aliases(torch.fft.fft2(x, s=(2 * h, 2 * w)))
        return torch.view_as_real((z * aligned(self.spectra.forward, z.ndim)).mean((-4, -2)))

    def _adjoint(self, y: Tensor) -> Tensor:
        _, h, w = self.image_shape
        return self._spread(y, self.spectra.forward.conj()) * (4 * h * w / self.stride**2)

    def back_project(self, y: Tensor) -> Tensor:
        """(B, *K, *M) -> (B, *K, C, H, W): the inverse of the map on the padded image, cropped."""
        self._check(y, self.measurement_shape, "a measurement")
        return self._run(lambda y: self._spread(y, self.spectra.back), y)

    def as_image(self, y: Tensor) -> Tensor:
        return self.back_project(y)

    def _spread(self, y: Tensor, factor: Tensor) -> Tensor:
        """Repeat the spectrum over its aliases, multiply by factors on the padded grid, transform back and crop."""
        _, h, w = self.image_shape
        z = torch.view_as_complex(y.contiguous())[..., None, :, None, :]
        z = (z * aligned(factor, z.ndim)).flatten(-4, -3).flatten(-2)
        image: Tensor = torch.fft.ifft2(z).real[..., :h, :w]
        return image

    def prepare(self) -> "PublishedBlur":
        _ = self.spectra
        return self

    def attributes(self) -> dict[str, Any]:
        return {"stride": self.stride}
