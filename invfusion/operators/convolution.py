"""Blur and down-sampling: a circular convolution of which every s-th pixel is kept.

Everything is exact in the Fourier domain. With K the spectrum of the kernel and E the mean of |K|^2 over the s x s
aliases that decimation folds together, the singular values are sqrt(E), and the pseudo-inverse tiles the spectrum of
y / E and multiplies it by conj(K). Columns are handled by real transforms: decimation along them happens in space.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import (
    Gain,
    LinearOperator,
    aligned,
    check_definition,
    checked_image_shape,
    derived,
)

# Singular values below this share of the largest are zero, in H itself too, so that H H_pinv H = H holds exactly.
CUTOFF = 1e-2


class Spectra(NamedTuple):
    """Factors on half spectra (B, 1, s, H/s, W//2+1): rows split into aliases, columns as `rfft` lays them out.

    singular: the singular values at the frequencies of a measurement, (B, 1, H/s, W/s//2+1); norm: the largest, (B,).
    """

    forward: Tensor
    pinv: Tensor
    singular: Tensor
    norm: Tensor


class StridedConvolution(LinearOperator):
    """y = every s-th pixel of the circular convolution of each channel with the sample's kernel.

    kernel: (B, H, W), real, summing to one, centre at (H//2, W//2). Measurements: (C, H/s, W/s), pixel units.
    cutoff: singular values below `cutoff` times the sample's largest one are set to zero.
    Raises `ShapeError` where the stride does not divide the image's sides. Source: paper A.3.2; exact and circular.
    """

    kind: ClassVar[str] = "strided_convolution"
    kernel: Tensor

    def __init__(self, image_shape: Sequence[int], kernel: Tensor, stride: int, cutoff: float = CUTOFF) -> None:
        c, h, w = checked_image_shape(image_shape)
        if type(stride) is not int or type(cutoff) not in (int, float) or not 0 <= cutoff < 1:
            raise OperatorError(
                f"operator '{self.kind}' needs a whole number as stride and a cutoff in [0, 1), "
                f"got {stride!r} and {cutoff!r}"
            )
        if stride < 1 or h % stride or w % stride:
            raise ShapeError(f"stride {stride} must divide both sides of the image {h}x{w}")
        if kernel.ndim != 3:
            raise ShapeError(f"the kernel of images {h}x{w} must be (B, {h}, {w}), got {tuple(kernel.shape)}")
        super().__init__(len(kernel), image_shape, (c, h // stride, w // stride))
        if tuple(kernel.shape[1:]) != (h, w):
            raise ShapeError(f"the kernel of images {h}x{w} must be (B, {h}, {w}), got {tuple(kernel.shape)}")
        self.stride = stride
        self.cutoff = float(cutoff)
        self.register_buffer("kernel", kernel)

    @derived
    def spectra(self) -> Spectra:
        """Computed in float64, kept in the operator's precision."""
        s, (_, h, w) = self.stride, self.image_shape
        full = torch.fft.fft2(torch.fft.ifftshift(self.kernel.double(), dim=(-2, -1)))
        aliases = full.reshape(-1, s, h // s, s, w // s)
        energy = aliases.abs().square().mean(dim=(1, 3), keepdim=True)
        largest = energy.amax(dim=(2, 4), keepdim=True)
        kept = (energy >= self.cutoff**2 * largest) & (energy > 0)
        forward = aliases * kept
        pinv = forward.conj() / energy.where(kept, 1)
        half = [z.reshape(-1, 1, s, h // s, w)[..., : w // 2 + 1].to(self.dtype.to_complex()) for z in (forward, pinv)]
        singular = (energy * kept).sqrt()[:, :, :, 0, : w // s // 2 + 1].to(self.dtype)
        return Spectra(forward=half[0], pinv=half[1], singular=singular, norm=largest.sqrt().flatten().to(self.dtype))

    def _forward(self, x: Tensor) -> Tensor:
        s, (_, m, _), w = self.stride, self.measurement_shape, self.image_shape[2]
        z = torch.fft.rfft2(x).unflatten(-2, (s, m))
        folded = (z * aligned(self.spectra.forward, z.ndim)).mean(dim=-3)
        full_width: Tensor = torch.fft.irfft2(folded, s=(m, w))
        return full_width[..., ::s]

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._spread(y, self.spectra.forward.conj())

    def _pinv(self, y: Tensor) -> Tensor:
        return self._spread(y, self.spectra.pinv)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        q = self.spectra.singular
        factors = gain(q.where(q > 0, 1)) * (q > 0)
        filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(y) * aligned(factors, y.ndim), s=y.shape[-2:])
        return filtered

    def _spread(self, y: Tensor, factor: Tensor) -> Tensor:
        """Tile the spectrum of y over the aliases, multiply, transform back."""
        zero_stuffed = F.pad(y[..., None], (0, self.stride - 1)).flatten(-2)
        z = torch.fft.rfft2(zero_stuffed)[..., None, :, :]
        tiled = (z * aligned(factor, z.ndim)).flatten(-3, -2)
        image: Tensor = torch.fft.irfft2(tiled, s=self.image_shape[1:])
        return image

    def prepare(self) -> Self:
        _ = self.spectra
        return self

    @property
    def norm(self) -> Tensor:
        return self.spectra.norm

    def attributes(self) -> dict[str, Any]:
        return {"stride": self.stride, "cutoff": self.cutoff}

    @classmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        check_definition(cls.kind, tensors, ["kernel"], "tensors")
        check_definition(cls.kind, attributes, ["stride", "cutoff"], "attributes")
        return cls(image_shape, tensors["kernel"], attributes["stride"], attributes["cutoff"])
