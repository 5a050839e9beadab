"""Sampling of the Fourier transform of a real image, as magnetic resonance imaging does."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators.base import Gain, LinearOperator, aligned, checked_binary, checked_image_shape, derived, planes


class Fourier(LinearOperator):
    """y = the orthonormal 2-D Fourier transform of each channel where the mask is 1, zero elsewhere, (2C, H, W).

    The first C channels of y are real parts, the others imaginary parts. The image is real: complex ones are refused.
    mask: (H, W) for one operator, (B, H, W) or (B, 1, H, W), of 0 and 1, with the zero frequency at pixel (0, 0).

    A real image has one number for the frequencies k and -k together, so H^T H is a convolution with the transfer
    function (m(k) + m(-k)) / 2, whose roots are the singular values: 1, sqrt(1/2) or 0.
    """

    kind: ClassVar[str] = "fourier"
    mask: Tensor

    def __init__(self, image_shape: Sequence[int], mask: Tensor) -> None:
        mask = planes(mask, "a Fourier mask")
        c, h, w = checked_image_shape(image_shape)
        if tuple(mask.shape[1:]) != (1, h, w):
            raise ShapeError(
                f"the Fourier mask of images {tuple(image_shape)} must be {h}x{w}, got {tuple(mask.shape)}"
            )
        super().__init__(len(mask), image_shape, (2 * c, h, w))
        self.register_buffer("mask", checked_binary(mask, "a Fourier mask", "1 is sampled"))

    @derived
    def energy(self) -> Tensor:
        """Squared singular values by frequency, (B, 1, H, W)."""
        mirrored = self.mask.flip(-2, -1).roll((1, 1), (-2, -1))
        return ((self.mask + mirrored) / 2).to(self.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        z = torch.fft.fft2(x, norm="ortho") * aligned(self.mask.to(x.dtype), x.ndim)
        return torch.cat([z.real, z.imag], dim=-3)

    def _adjoint(self, y: Tensor) -> Tensor:
        z = torch.complex(*y.chunk(2, dim=-3)) * aligned(self.mask.to(y.dtype), y.ndim)
        image: Tensor = torch.fft.ifft2(z, norm="ortho").real
        return image

    def _pinv(self, y: Tensor) -> Tensor:
        kept = self.energy > 0
        return self._filter(self._adjoint(y), kept / self.energy.where(kept, 1))

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        kept = self.energy > 0
        values = self.energy.where(kept, 1)
        return self._forward(self._filter(self._adjoint(y), kept * gain(values.sqrt()) / values))

    def _filter(self, x: Tensor, factor: Tensor) -> Tensor:
        image: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * aligned(factor.to(x.dtype), x.ndim)).real
        return image

    @property
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        return self.energy.flatten(1).amax(dim=1).sqrt()

    def check_values(self) -> None:
        checked_binary(self.mask, "a Fourier mask", "1 is sampled")
