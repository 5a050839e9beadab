"""Distances between two sets of images, taken over any features: Frechet distance and kernel distance.

They are called FID and KID only where the features are Inception's (`features.InceptionFeatures`).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.metrics.base import Weighted

# Rows of a kernel that are in memory at once: ten thousand images' whole kernel takes 0.8 GB.
PART = 512
# Methods are compared to one reference, resampled alike. Of references with at most so many features what a distance
# needs of the last resamples is kept: at most 67 MB, and 8 bytes a resample for each image of the reference.
KEPT_FEATURES, KEPT_RESAMPLES = 256, 128


@dataclass(frozen=True)
class FeatureStatistics:
    """Count, sum and sum of outer products of features, float64; sets add up, so parts can be merged."""

    n: float
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor | None = None) -> Self:
        """The statistics of features (n, d), each counted `weights` (n,) times."""
        f = features.double()
        w = f.new_ones(len(f)) if weights is None else weights.double()
        return cls(float(w.sum()), w @ f, f.T @ (w[:, None] * f))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.n + other.n, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        """(d,)"""
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """(d, d), the unbiased estimate."""
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); biased upwards by the smallness of the sets.

    Raises:
        ShapeError: a set has fewer than two images.
    """
    _need_two(a.n)
    _need_two(b.n)
    root = _matrix_root(a.covariance)
    # tr (S_a S_b)^(1/2) through the symmetric product, whose eigenvalues are the same.
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean - b.mean).square().sum()
    return max(float(gap + a.covariance.trace() + b.covariance.trace() - 2 * cross), 0.0)


def frechet(values: Tensor, reference: Tensor | None) -> Weighted:
    """The Frechet distance of features (n, d) to reference features (m, d), as a function of both sides' weights.

    Raises:
        ShapeError: there is no reference.
    """
    there = _there(reference)

    def one(w: Tensor, v: Tensor) -> float:
        mean, root = _mean_and_root(values.double(), w)
        mean_there, root_there = _of_reference(there, v)
        # With S = R^T R, tr (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b^T: as small as the smaller
        # of images and features.
        cross = torch.linalg.svdvals(root @ root_there.T).sum()
        gap = (mean - mean_there).square().sum()
        return max(float(gap + root.square().sum() + root_there.square().sum() - 2 * cross), 0.0)

    def distances(weights: Tensor, of_reference: Tensor | None = None) -> Tensor:
        as_it_is = there.new_ones(1, len(there), dtype=weights.dtype).expand(len(weights), -1)
        pairs = zip(weights, as_it_is if of_reference is None else of_reference, strict=True)
        return weights.new_tensor([one(w, v) for w, v in pairs])

    return distances


def _of_reference(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    if features.shape[1] > KEPT_FEATURES:
        return _mean_and_root(features.double(), weights)
    return _kept_of_reference(features, weights.double().numpy(force=True).tobytes())


@lru_cache(maxsize=KEPT_RESAMPLES)
def _kept_of_reference(features: Tensor, weights: bytes) -> tuple[Tensor, Tensor]:
    # A tensor's hash is its identity.
    counts = torch.frombuffer(bytearray(weights), dtype=torch.float64)
    return _mean_and_root(features.double(), counts.to(features.device))


def _mean_and_root(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of features (n, d) in float64, each counted `weights` (n,) times, the mean (d,) and a matrix R (at most d, d) for
    which R^T R is the unbiased covariance."""
    n, counted = weights.sum(), weights > 0
    _need_two(float(n))
    f, w = features[counted], weights[counted].double()
    mean = w @ f / n
    root = (w / (n - 1)).sqrt()[:, None] * (f - mean)
    return mean, root if len(root) <= root.shape[1] else torch.linalg.qr(root, mode="r").R


def kernel(values: Tensor, reference: Tensor | None) -> Weighted:
    """The kernel distance likewise, of features (n, d) and (m, d)."""
    return kernel_distances(values, _there(reference))


def kernel_distance(a: Tensor, b: Tensor, weights: Tensor | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (u.v / d + 1)^3.

    With `weights` (n,), image i of `a` counts so often, and pairs of an image with itself stay out. Around 0, also
    below, for sets of one distribution. Source: Binkowski et al. (KID), on the whole sets instead of random subsets.
    """
    w = torch.ones(len(a), dtype=torch.float64, device=a.device) if weights is None else weights.double()
    return float(kernel_distances(a, b)(w[None], None))


def kernel_distances(features: Tensor, reference: Tensor) -> Weighted:
    """The kernel distance of (n, d) and (m, d) as a function of the weights of both sides, a part of the kernel at a
    time."""
    a, b = features.double(), reference.double()
    _need_two(len(a))
    _need_two(len(b))

    def distances(weights: Tensor, of_reference: Tensor | None = None) -> Tensor:
        w, v = weights.double(), a.new_ones(1, len(b)) if of_reference is None else of_reference.double()
        return _within(a, w) + _within(b, v) - 2 * _across(a, b, w, v) / (w.sum(1) * v.sum(1))

    return distances


def _within(a: Tensor, w: Tensor) -> Tensor:
    """Of weights (R, n), the mean kernel (R,) between features (n, d) of different images."""
    own = torch.cat([_kernel(part[:, None], part[:, None])[:, 0, 0] for part in torch.split(a, PART)])
    pairs = _across(a, a, w, w) - w.square() @ own
    return pairs / (w.sum(1).square() - w.square().sum(1))


def _across(a: Tensor, b: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """The sum of w_i v_j k(a_i, b_j), (R,), of weights (R, n) and (R or 1, m)."""
    parts = zip(torch.split(a, PART), torch.split(w, PART, dim=1), strict=True)
    return torch.stack([(u * (_kernel(part, b) @ v.T).T).sum(1) for part, u in parts]).sum(0)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT / a.shape[-1] + 1).pow(3)


def _matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _there(reference: Tensor | None) -> Tensor:
    if reference is None:
        raise ShapeError("a distance between sets of images needs features of reference images")
    return reference


def _need_two(n: float) -> None:
    if n < 2:
        raise ShapeError(f"a distance between sets of images needs at least 2 images in each, got {n:g}")
