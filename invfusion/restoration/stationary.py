"""A Gaussian law of images that is the same at every place: a spectrum for each combination of the channels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Deviations in pixels of the bells whose difference are the middle frequencies, and of the one that says how far
# around a pixel its contrast is looked for; the least contrast.
BAND_AND_AROUND, LEAST_CONTRAST = (1.5, 5.0, 10.0), 0.03


@dataclass(frozen=True)
class Stationary:
    """A stationary Gaussian on a grid of `size` rows and columns, somewhat larger than the image.

    mean: (C, 1, 1); colours: (C, C) orthonormal, a combination of channels per row; spectrum: (C, H', W' // 2 + 1), the
    variance of each frequency.
    """

    mean: Tensor
    colours: Tensor
    spectrum: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device | str) -> "Stationary":
        return replace(
            self, mean=self.mean.to(device), colours=self.colours.to(device), spectrum=self.spectrum.to(device)
        )

    def on(self, height: int, width: int) -> "Stationary":
        """The same on a grid of another size, the spectrum interpolated."""
        rows = (torch.fft.fftfreq(height) % 1 * self.size[0]).round().long() % self.size[0]
        columns = (torch.fft.rfftfreq(width) * self.size[1]).round().long().clamp(max=self.spectrum.shape[2] - 1)
        return replace(self, spectrum=self.spectrum[:, rows][:, :, columns], size=(height, width))

    def planes(self, images: Tensor) -> Tensor:
        """The combinations of the channels of images (B, C, H, W)."""
        return torch.einsum("kc,bchw->bkhw", self.colours, images)

    def images(self, planes: Tensor) -> Tensor:
        """Back from `planes`, (B, C, H, W)."""
        return torch.einsum("kc,bkhw->bchw", self.colours, planes)

    def filtered(self, x: Tensor, gain: Callable[[Tensor], Tensor] = lambda S: S) -> Tensor:
        """gain(C) x for x (B, C, H, W), which is zero beyond its borders; without a gain, the covariance times x."""
        z = torch.fft.rfft2(self.planes(x), s=self.size)
        y = torch.fft.irfft2(z * gain(self.spectrum), s=self.size)[..., : x.shape[-2], : x.shape[-1]]
        return self.images(y)

    def contrast(self, x: Tensor, known: Tensor | None) -> Tensor:
        """The local deviation of middle frequencies in x (B, C, H, W) over the law's; known: weights (B, 1, H, W)."""
        fine, coarse, around = (self._bell(n) for n in BAND_AND_AROUND)
        band = fine - coarse
        expected = torch.fft.irfft2(self.spectrum[0] * band**2, s=self.size)[0, 0]
        known = torch.ones_like(x[:, :1]) if known is None else known.to(x)
        found = self._convolved(self.planes(x - self.mean)[:, :1], band).square()
        near = self._convolved(known, around).clamp(min=1e-6)
        share: Tensor = self._convolved(found * known, around) / near / expected
        return share.clamp(min=LEAST_CONTRAST**2).sqrt()

    def interpolated(self, x: Tensor, known: Tensor, deviation: float) -> Tensor:
        """Means of the known pixels around each, weighted by a bell: (B, C, H, W) on the grid, x zero where known is.

        Source: Knutsson & Westin 1993, normalized convolution.
        """
        bell = self._bell(deviation)
        return self._convolved(x, bell) / self._convolved(known, bell).clamp(min=1e-4)

    def _bell(self, deviation: float) -> Tensor:
        """The transform of a Gaussian of this deviation, in pixels."""
        f = torch.hypot(torch.fft.fftfreq(self.size[0])[:, None], torch.fft.rfftfreq(self.size[1])[None])
        return torch.exp(-2 * (torch.pi * deviation * f.to(self.spectrum.device)) ** 2)

    def _convolved(self, planes: Tensor, transfer: Tensor) -> Tensor:
        wide: Tensor = torch.fft.irfft2(torch.fft.rfft2(planes, s=self.size) * transfer, s=self.size)
        return wide[..., : planes.shape[-2], : planes.shape[-1]]
