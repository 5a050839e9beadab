"""Distances between two sets of images, taken over any features: Frechet distance and kernel distance.

They are called FID and KID only where the features are Inception's (`features.InceptionFeatures`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from invfusion.errors import ShapeError


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
    return frechet_distance_from(a)(b)


def frechet_distance_from(reference: FeatureStatistics) -> Callable[[FeatureStatistics], float]:
    """The Frechet distance to one reference, whose matrix root is computed once."""
    _need_two(reference.n)
    root, variance = _matrix_root(reference.covariance), reference.covariance.trace()

    def distance(other: FeatureStatistics) -> float:
        _need_two(other.n)
        covariance = other.covariance
        # tr (S_a S_b)^(1/2) through the symmetric product, whose eigenvalues are the same.
        cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
        gap = (reference.mean - other.mean).square().sum()
        return max(float(gap + variance + covariance.trace() - 2 * cross), 0.0)

    return distance


def frechet(values: Tensor, reference: Tensor | None) -> Callable[[Tensor], float]:
    """The Frechet distance of features (n, d) to reference features (N, d) as a function of the weights of the former.

    Raises:
        ShapeError: there is no reference.
    """
    distance = frechet_distance_from(FeatureStatistics.of(_there(reference)))
    return lambda weights: distance(FeatureStatistics.of(values, weights))


def kernel(values: Tensor, reference: Tensor | None) -> Callable[[Tensor], float]:
    """The kernel distance likewise, of features (n, d) and (m, d)."""
    return kernel_distance_from(_there(reference), values)


def kernel_distance(a: Tensor, b: Tensor, weights: Tensor | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of features (n, d) and (m, d), kernel (u.v / d + 1)^3.

    With `weights` (n,), image i of `a` counts so often, and pairs of an image with itself stay out. Around 0, also
    below, for sets of one distribution. Source: Binkowski et al. (KID), on the whole sets instead of random subsets.
    """
    return kernel_distance_from(b, a)(weights)


def kernel_distance_from(reference: Tensor, features: Tensor) -> Callable[[Tensor | None], float]:
    """The kernel distance of (m, d) and (n, d) as a function of the weights (n,) of `features`; kernels are kept."""
    a, b = features.double(), reference.double()
    _need_two(len(a))
    _need_two(len(b))
    aa, ab, bb = _kernel(a, a), _kernel(a, b).mean(1), _kernel(b, b)
    within_b = (bb.sum() - bb.trace()) / (len(b) * (len(b) - 1))

    def distance(weights: Tensor | None) -> float:
        w = a.new_ones(len(a)) if weights is None else weights.double()
        pairs = w @ aa @ w - w.square() @ aa.diagonal()
        within_a = pairs / (w.sum().square() - w.square().sum())
        return float(within_a + within_b - 2 * (w @ ab) / w.sum())

    return distance


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1).pow(3)


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
