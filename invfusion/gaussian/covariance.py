"""Covariances of images in a basis in which they are diagonal: functions of them cost one change of basis and back.

All numbers are float64. A gain maps eigenvalues and the precision p of a noisy image, broadcast against each other, to
factors: with c / (1 + c p), for instance, a filter is the covariance of the image given one of noise level p^(-1/2).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from invfusion.errors import ConfigError
from invfusion.operators.base import aligned

Gain = Callable[[Tensor, Tensor], Tensor]
# Singular values of the images below this share of the largest are rounding errors of a zero.
RANK_TOLERANCE = 1e-9


def given_noisy(c: Tensor, p: Tensor) -> Tensor:
    """The variance that a direction of prior variance c keeps, given an image with noise of precision p."""
    return c / (1 + c * p)


class Covariance(nn.Module, ABC):
    """A covariance of images (C, H, W) with known eigenvalues, all positive."""

    @abstractmethod
    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        """gain(covariance) x for x (B, *K, C, H, W) float64 and precisions p (B,)."""

    @abstractmethod
    def mean_of(self, p: Tensor, gain: Gain) -> Tensor:
        """The average of gain over all eigenvalues, (B,): the trace of the filter per pixel and channel."""


class LowRank(Covariance):
    """U diag(v) U^T + floor I.

    basis: U, (C, H, W, r) with orthonormal columns; variances: v, (r,), not negative; floor: (), positive.
    """

    basis: Tensor
    variances: Tensor
    floor: Tensor

    def __init__(self, basis: Tensor, variances: Tensor, floor: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis.double(), persistent=False)
        self.register_buffer("variances", variances.double(), persistent=False)
        self.register_buffer("floor", floor.double(), persistent=False)

    @property
    def flat_basis(self) -> Tensor:
        """(D, r)."""
        return self.basis.flatten(0, 2)

    @property
    def size(self) -> int:
        """D, the numbers in an image."""
        return self.flat_basis.shape[0]

    def seen_by(self, rows: Tensor) -> Tensor:
        """Matrices (B, m, D) times U, (B, m, r)."""
        return rows @ self.flat_basis

    def excess(self, p: Tensor, gain: Gain) -> tuple[Tensor, Tensor]:
        """What gain gives along the basis beyond that of the floor, (B, r), and that of the floor, (B,)."""
        floor = gain(self.floor, p)
        return gain(self.variances + self.floor, p[:, None]) - floor[:, None], floor

    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        excess, floor = self.excess(p, gain)
        flat = x.flatten(-3)
        along = flat @ self.flat_basis * aligned(excess, flat.ndim)
        return (along @ self.flat_basis.mT + aligned(floor[:, None], flat.ndim) * flat).view(x.shape)

    def mean_of(self, p: Tensor, gain: Gain) -> Tensor:
        excess, floor = self.excess(p, gain)
        return excess.sum(1) / self.size + floor

    @classmethod
    def fit(cls, deviations: Tensor, rank: int, floor: float) -> "LowRank":
        """The leading principal components of deviations from the mean, (N, C, H, W); the rest of the variance is
        spread evenly over all directions, and nowhere is there less than `floor`.

        That is the maximum of the likelihood where the floor does not bind. Source: Tipping & Bishop 1999.
        """
        n, shape = len(deviations), deviations.shape[1:]
        flat = deviations.flatten(1)
        size = flat.shape[1]
        if shape[0] > 1 and torch.equal(deviations, deviations[:, :1].expand_as(deviations)):
            return cls._fit_grey(deviations, rank, floor)
        if not 1 <= rank <= min(n - 1, size):
            raise ConfigError(
                f"{n} images of {size} numbers have at most {min(n - 1, size)} principal components, and the rank "
                f"is {rank}; lower the rank or give more images"
            )
        values, vectors = _leading(flat, rank)
        left = (flat.square().sum() / n - values.sum()).clamp(min=0) / max(size - rank, 1)
        bottom = left.clamp(min=floor)
        return cls(vectors.T.reshape(rank, *shape).permute(1, 2, 3, 0), (values - bottom).clamp(min=0), bottom)

    @classmethod
    def _fit_grey(cls, deviations: Tensor, rank: int, floor: float) -> "Grey":
        channels, pixels = deviations.shape[1], deviations[0, 0].numel()
        one = cls.fit(math.sqrt(channels) * deviations[:, :1], min(rank, pixels), floor)
        # The variance that is left out is spread over the colours too.
        left = (one.floor - floor).clamp(min=0) * (pixels - len(one.variances)) / max(channels * pixels - rank, 1)
        bottom = left.clamp(min=floor)
        return Grey(one.basis, (one.variances + one.floor - bottom).clamp(min=0), bottom, channels)


class Grey(LowRank):
    """Low rank where the channels are copies of one another: c c^T (x) U diag(v) U^T + floor I with c = (1, ..., 1) / C^0.5.

    Operators that treat the channels alike then see the grey image and, apart from it, colours of variance `floor`.
    basis: (1, H, W, r); n_channels: C, at least two.
    """

    def __init__(self, basis: Tensor, variances: Tensor, floor: Tensor, n_channels: int) -> None:
        super().__init__(basis, variances, floor)
        self.n_channels = n_channels

    @property
    def grey(self) -> LowRank:
        """The covariance of c^T x, images of one channel."""
        return LowRank(self.basis, self.variances, self.floor)

    @property
    def flat_basis(self) -> Tensor:
        return self.basis.flatten(0, 2).repeat(self.n_channels, 1) / math.sqrt(self.n_channels)

    @property
    def size(self) -> int:
        return self.n_channels * self.basis[..., 0].numel()

    def seen_by(self, rows: Tensor) -> Tensor:
        folded = rows.unflatten(2, (self.n_channels, -1)).sum(2)
        return folded @ self.basis.flatten(0, 2) / math.sqrt(self.n_channels)

    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        excess, floor = self.excess(p, gain)
        basis, flat = self.basis.flatten(0, 2), x.sum(-3).flatten(-2)
        along = flat @ basis * aligned(excess / self.n_channels, flat.ndim)
        grey = (along @ basis.mT).view(*x.shape[:-3], 1, *x.shape[-2:])
        return grey + aligned(floor[:, None, None, None], x.ndim) * x


def _leading(flat: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (r,) of the covariance of rows (N, D), and unit eigenvectors in columns (D, r)."""
    n, size = flat.shape
    if size <= n:
        values, vectors = torch.linalg.eigh(flat.T @ flat / n)
        return values.flip(0)[:rank], vectors.flip(1)[:, :rank]
    values, left = torch.linalg.eigh(flat @ flat.T / n)
    values, left = values.flip(0)[:rank], left.flip(1)[:, :rank]
    vectors, triangle = torch.linalg.qr(flat.T @ left)
    return values.clamp(min=0), vectors * triangle.diagonal().sign()


class Stationary(Covariance):
    """Equal at every pixel, on a torus: a power spectrum for each of C uncorrelated combinations of the channels.

    colours: (C, C) orthogonal, a combination per row; spectrum: (C, H, W//2+1), the variance of each frequency, positive.
    width: W.
    """

    colours: Tensor
    spectrum: Tensor

    def __init__(self, colours: Tensor, spectrum: Tensor, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("colours", colours.double(), persistent=False)
        self.register_buffer("spectrum", spectrum.double(), persistent=False)

    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        factors = gain(self.spectrum, p.view(-1, 1, 1, 1))
        z = torch.fft.rfft2(torch.einsum("kc,...chw->...khw", self.colours, x))
        filtered = torch.fft.irfft2(z * aligned(factors, z.ndim), s=x.shape[-2:])
        return torch.einsum("kc,...khw->...chw", self.colours, filtered)

    def mean_of(self, p: Tensor, gain: Gain) -> Tensor:
        factors = gain(self.spectrum, p.view(-1, 1, 1, 1))
        return (factors * half_weights(self.width, factors)).sum((1, 2, 3)) / (factors[0, :, :, 0].numel() * self.width)

    @classmethod
    def fit(cls, deviations: Tensor, floor: float) -> Self:
        """The average periodogram of deviations from the mean, (N, C, H, W), nowhere less than `floor`."""
        n, c, h, w = deviations.shape
        channels = deviations.transpose(0, 1).flatten(1)
        colours = torch.linalg.eigh(channels @ channels.T / channels.shape[1])[1].T.flip(0)
        z = torch.fft.rfft2(torch.einsum("kc,nchw->nkhw", colours, deviations))
        return cls(colours, (z.abs().square().mean(0) / (h * w)).clamp(min=floor), w)


def half_weights(width: int, like: Tensor) -> Tensor:
    """How many columns of a full spectrum each column of a half one stands for, (W//2+1,)."""
    weights = torch.full((width // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    weights[0] = 1
    if width % 2 == 0:
        weights[-1] = 1
    return weights
