"""Covariances of images in a basis in which they are diagonal: functions of them cost one change of basis and back.

All numbers are float64. A gain maps eigenvalues and the precision p of a noisy image, broadcast against each other, to
factors: with c / (1 + c p), for instance, a filter is the covariance of the image given one of noise level p^(-1/2).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from invfusion.errors import ConfigError
from invfusion.operators.base import aligned

Gain = Callable[[Tensor, Tensor], Tensor]
# Singular values of the images below this share of the largest are rounding errors of a zero.
RANK_TOLERANCE = 1e-9
# Numbers of a batch's intermediate results that are held at a time, by kind of device: 128 MB of complex ones, and a
# GiB on an accelerator, which many small parts would keep waiting for their launches.
AT_ONCE: dict[str, int] = {"cpu": 2**23, "cuda": 2**26}


def given_noisy(c: Tensor, p: Tensor) -> Tensor:
    """The variance that a direction of prior variance c keeps, given an image with noise of precision p; any shape."""
    return c / (1 + c * p)


def kept(c: Tensor, p: Tensor) -> Tensor:
    """The share of its deviation that the mean keeps along a direction of variance c, given an image with noise of
    precision p; any shape."""
    return 1 / (1 + c * p)


class Covariance(nn.Module, ABC):
    """A covariance of images (C, H, W) with known, positive eigenvalues; `tensor_names` are those that define it."""

    tensor_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        """gain(covariance) x for x (B, *K, C, H, W) float64, or (1, *K, C, H, W) for all, and precisions p (B,)."""

    @abstractmethod
    def mean_of(self, p: Tensor, gain: Gain) -> Tensor:
        """The average of gain over all eigenvalues, (B,): the trace of the filter per pixel and channel."""


class LowRank(Covariance):
    """U diag(v) U^T + floor I.

    basis: U, (C, H, W, r) with orthonormal columns; variances: v, (r,), not negative; floor: (), positive.
    """

    tensor_names: ClassVar[tuple[str, ...]] = ("basis", "variances", "floor")
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
        filtered = _filtered(x.flatten(-3), self.flat_basis, *self.excess(p, gain))
        return filtered.view(*filtered.shape[:-1], *x.shape[-3:])

    def mean_of(self, p: Tensor, gain: Gain) -> Tensor:
        excess, floor = self.excess(p, gain)
        return excess.sum(1) / self.size + floor

    @classmethod
    def fit(cls, deviations: Tensor, rank: int, floor: float) -> Self:
        """The leading principal components of deviations from the mean, (N, C, H, W); the rest of the variance is
        spread evenly over all directions, and nowhere is there less than `floor`.

        That is the maximum of the likelihood where the floor does not bind. Source: Tipping & Bishop 1999.
        """
        shape, flat = deviations.shape[1:], deviations.flatten(1)
        check_rank(len(flat), flat.shape[1], rank)
        values, weights = _spectrum(flat)
        values, vectors = values[:rank], _directions(flat, weights[:, :rank])
        bottom = left_out(deviations, values, floor)
        return cls(vectors.T.reshape(rank, *shape).permute(1, 2, 3, 0), (values - bottom).clamp(min=0), bottom)


class Coloured(LowRank):
    """sum_k c_k c_k^T (x) U_k diag(v_k) U_k^T + floor I: C uncorrelated combinations of the channels, each of low rank.

    An operator that treats the channels alike then sees C images of one channel, each with a problem of its own, C^2
    times cheaper in sum. Grey images that are stored as colours have but one combination that varies.

    colours: (C, C) orthogonal, c_k in row k; basis: (1, H, W, r), of all combinations together; variances: (r,);
    combination: (r,) long, the k that a column of the basis belongs to, in rising order.
    """

    tensor_names = ("colours", "basis", "variances", "combination", "floor")
    colours: Tensor
    combination: Tensor

    def __init__(self, colours: Tensor, basis: Tensor, variances: Tensor, combination: Tensor, floor: Tensor) -> None:
        super().__init__(basis, variances, floor)
        self.register_buffer("colours", colours.double(), persistent=False)
        self.register_buffer("combination", combination, persistent=False)
        # Numbers, so that taking the parts of a tensor waits for no device.
        self.ranks: list[int] = combination.bincount(minlength=len(colours)).tolist()

    @property
    def blocks(self) -> list[LowRank]:
        """The covariance of each combination, of images of one channel."""
        parts = zip(torch.split(self.basis, self.ranks, -1), torch.split(self.variances, self.ranks), strict=True)
        return [LowRank(basis, variances, self.floor) for basis, variances in parts]

    @property
    def flat_basis(self) -> Tensor:
        weights = self.colours[self.combination]
        return (weights.T[:, None] * self.basis.flatten(0, 2)).flatten(0, 1)

    @property
    def size(self) -> int:
        return len(self.colours) * self.basis[..., 0].numel()

    def seen_by(self, rows: Tensor) -> Tensor:
        return in_parts(lambda some: self._seen_by(rows[some]), len(rows), rows[0].numel(), rows.device)

    def _seen_by(self, rows: Tensor) -> Tensor:
        turned = torch.einsum("kc,bmcp->kbmp", self.colours, rows.view(*rows.shape[:2], len(self.colours), -1))
        return torch.cat([part @ basis for part, basis in zip(turned, self._bases, strict=True)], 2)

    @property
    def _bases(self) -> Sequence[Tensor]:
        """Of each combination, (H*W, r_k)."""
        return torch.split(self.basis.flatten(0, 2), self.ranks, 1)

    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        excess, floor = self.excess(p, gain)
        turned = torch.einsum("kc,...cp->...kp", self.colours, x.flatten(-2)).unbind(-2)
        parts = zip(turned, self._bases, torch.split(excess, self.ranks, 1), strict=True)
        filtered = torch.stack([_filtered(part, basis, its, floor) for part, basis, its in parts], -2)
        return torch.einsum("kc,...kp->...cp", self.colours, filtered).view(*filtered.shape[:-1], *x.shape[-2:])

    @classmethod
    def fit(cls, deviations: Tensor, rank: int, floor: float, colours: Tensor | None = None) -> Self:
        """As `LowRank.fit` of (N, C, H, W), with the `rank` leading components of all combinations together.

        colours: what is taken for uncorrelated; None: the combinations that are.
        """
        n, channels, h, w = deviations.shape
        check_rank(n, channels * h * w, rank)
        colours = colour_combinations(deviations) if colours is None else colours
        most = min(n - 1, h * w)
        found = [_spectrum(_combined(deviations, colour)) for colour in colours]
        values = torch.cat([v[:most] for v, _ in found])
        kept = values.argsort(descending=True)[:rank].sort().values
        combination, ranks = kept // most, (kept // most).bincount(minlength=len(colours)).tolist()
        # The images of a combination are made anew, rather than kept beside those of the others.
        bases = [
            _directions(_combined(deviations, colour), weights[:, :its])
            for colour, (_, weights), its in zip(colours, found, ranks, strict=True)
            if its
        ]
        bottom = left_out(deviations, values[kept], floor)
        basis = torch.cat(bases, 1).view(1, h, w, -1)
        return cls(colours, basis, (values[kept] - bottom).clamp(min=0), combination, bottom)


def _filtered(flat: Tensor, basis: Tensor, excess: Tensor, floor: Tensor) -> Tensor:
    """Images (B, *K, D) of which the parts along a basis (D, r) are multiplied by excess + floor, the rest by floor."""
    along = flat @ basis * aligned(excess, flat.ndim)
    return along @ basis.mT + aligned(floor[:, None], flat.ndim) * flat


def in_parts(apply: Callable[[slice], Tensor], n: int, each: int, device: torch.device) -> Tensor:
    """What a function makes of n samples (n, ...), given a slice of them, by so few at a time that their intermediate
    results, `each` numbers a sample, are no more than `AT_ONCE`, but for one sample's."""
    step = max(AT_ONCE.get(device.type, AT_ONCE["cpu"]) // max(each, 1), 1)
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    return apply(parts[0]) if len(parts) == 1 else torch.cat([apply(part) for part in parts])


def colour_combinations(deviations: Tensor) -> Tensor:
    """The uncorrelated combinations of the channels of (N, C, H, W), (C, C), the one that varies most first."""
    channels = deviations.flatten(2)
    combinations: Tensor = torch.linalg.eigh((channels @ channels.mT).sum(0))[1].T.flip(0)
    return combinations


def _combined(deviations: Tensor, colour: Tensor) -> Tensor:
    """One combination (C,) of the channels of (N, C, H, W), in rows (N, H*W)."""
    # One after another: a product of all would first copy them in another order.
    combined = torch.zeros_like(deviations[:, 0])
    for weight, channel in zip(colour, deviations.unbind(1), strict=True):
        combined.addcmul_(channel, weight)
    return combined.flatten(1)


def check_rank(n: int, size: int, rank: int) -> None:
    """Raise `ConfigError` unless n images of `size` numbers have so many principal components."""
    if not 1 <= rank <= min(n - 1, size):
        raise ConfigError(
            f"{n} images of {size} numbers have at most {min(n - 1, size)} principal components, and the rank is "
            f"{rank}; lower the rank or give more images"
        )


def left_out(deviations: Tensor, values: Tensor, floor: float) -> Tensor:
    """The variance (N, C, H, W) that leading eigenvalues leave to each other direction, at least `floor`."""
    size = deviations[0].numel()
    whole = torch.linalg.vector_norm(deviations).square() / len(deviations)
    left: Tensor = (whole - values.sum()).clamp(min=0) / max(size - len(values), 1)
    return left.clamp(min=floor)


def _spectrum(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of the covariance of rows (N, D), the largest first, with columns for `_directions`: with D > N
    those of the rows' Gram matrix, (N, N), which are smaller than the eigenvectors."""
    n, size = flat.shape
    values, vectors = torch.linalg.eigh((flat.T @ flat if size <= n else flat @ flat.T) / n)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _directions(flat: Tensor, weights: Tensor) -> Tensor:
    """Unit eigenvectors (D, r) of the covariance of rows (N, D), of the leading columns (., r) of its `_spectrum`."""
    if flat.shape[1] <= len(flat):
        return weights
    vectors, triangle = torch.linalg.qr(flat.T @ weights)
    signed: Tensor = vectors * triangle.diagonal().sign()
    return signed


class Stationary(Covariance):
    """Equal at every pixel, on a torus: a power spectrum for each of C uncorrelated combinations of the channels.

    colours: (C, C) orthogonal, a combination per row; spectrum: (C, H, W), the variance of each frequency, positive.
    """

    tensor_names = ("colours", "spectrum")
    colours: Tensor
    spectrum: Tensor

    def __init__(self, colours: Tensor, spectrum: Tensor) -> None:
        super().__init__()
        self.register_buffer("colours", colours.double(), persistent=False)
        self.register_buffer("spectrum", spectrum.double(), persistent=False)

    def filter(self, x: Tensor, p: Tensor, gain: Gain) -> Tensor:
        factors = gain(self.spectrum[..., : x.shape[-1] // 2 + 1], p.view(-1, 1, 1, 1))
        z = torch.fft.rfft2(torch.einsum("kc,...chw->...khw", self.colours, x))
        filtered = torch.fft.irfft2(z * aligned(factors, z.ndim), s=x.shape[-2:])
        return torch.einsum("kc,...khw->...chw", self.colours, filtered)

    def mean_of(self, p: Tensor, gain: Gain) -> Tensor:
        return gain(self.spectrum, p.view(-1, 1, 1, 1)).mean((1, 2, 3))

    @classmethod
    def fit(cls, deviations: Tensor, floor: float) -> Self:
        """The average periodogram of deviations from the mean, (N, C, H, W), nowhere less than `floor`."""
        h, w = deviations.shape[2:]
        colours = colour_combinations(deviations)
        z = torch.fft.fft2(torch.einsum("kc,nchw->nkhw", colours, deviations))
        return cls(colours, (z.abs().square().mean(0) / (h * w)).clamp(min=floor))


def half_weights(width: int, like: Tensor) -> Tensor:
    """How many columns of a full spectrum each column of a half one stands for, (W//2+1,)."""
    column = torch.arange(width // 2 + 1, dtype=like.dtype, device=like.device)
    return torch.where((column == 0) | (2 * column == width), 1.0, 2.0).to(like.dtype)
