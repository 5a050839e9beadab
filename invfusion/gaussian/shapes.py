"""How far apart measurements leave the centres of clusters that share a covariance C = U diag(v) U^T + f I.

Given an image of precision p and measurements, a centre c becomes z = g(C) c - C_p H^T u with g(C) = (1 + p C)^-1 and
u = K_p^-1 H g(C) c. All that the clusters' probabilities and variances need of z are H g(C) c and |z|^2, and these
follow from H c, from the coordinates U^T c and U^T H^T u, and from |H^T u|: no image is filtered for each centre.
"""

from functools import cached_property

import torch
from torch import Tensor

from invfusion.gaussian.covariance import Gain, LowRank, given_noisy, kept
from invfusion.gaussian.solvers import Solver, aligned_to


class Shapes:
    """images: (K, S, H, W), float64; covariance: of images of S channels; solver: of operators on these, or None."""

    def __init__(self, images: Tensor, covariance: LowRank, solver: Solver | None) -> None:
        self.images, self.covariance, self.solver = images, covariance, solver

    @cached_property
    def _coordinates(self) -> Tensor:
        """U^T c, (K, r)."""
        return self.images.flatten(1) @ self.covariance.flat_basis

    @cached_property
    def _measured(self) -> Tensor:
        """H c, (B, K, *M)."""
        assert self.solver is not None
        operator = self.solver.operator
        return operator.H(self.images.expand(operator.batch_size, *self.images.shape))

    def energy(self, p: Tensor, gain: Gain) -> Tensor:
        """<c, gain(C) c>, (B, K)."""
        excess, floor = self.covariance.excess(p, gain)
        return floor[:, None] * self.images.flatten(1).square().sum(1) + excess @ self._coordinates.square().mT

    def measured(self, p: Tensor) -> Tensor:
        """H g(C) c, (B, K, *M)."""
        assert self.solver is not None
        excess, floor = self.covariance.excess(p, kept)
        left = self.solver.measured_basis(excess[:, None] * self._coordinates)
        return aligned_to(floor, left) * self._measured + left

    def squares(self, p: Tensor, u: Tensor | None) -> Tensor:
        """|z|^2, (B, K); u: (B, K, *M), or None without measurements."""
        found = self.energy(p, lambda c, p: kept(c, p).square())
        if u is None:
            return found
        assert self.solver is not None
        along, squares = self.solver.seen_back(u)
        excess, floor = self.covariance.excess(p, lambda c, p: kept(c, p) * given_noisy(c, p))
        both = floor[:, None] * (self._measured * u).flatten(2).sum(2)
        both = both + (excess[:, None] * self._coordinates * along).sum(2)
        excess, floor = self.covariance.excess(p, lambda c, p: given_noisy(c, p).square())
        taken = floor[:, None] * squares + (along.square() @ excess[..., None]).squeeze(2)
        return found - 2 * both + taken

    def mixed(self, weights: Tensor, p: Tensor, u: Tensor | None) -> Tensor:
        """sum_k w_k z_k, (B, S, H, W) for weights (B, K)."""
        images = torch.einsum("bk,kchw->bchw", weights, self.images)
        left = self.covariance.filter(images, p, kept)
        return left if u is None else left - self._back(torch.einsum("bk,bk...->b...", weights, u), p)

    def moved(self, p: Tensor, u: Tensor | None) -> Tensor:
        """All z, (B, K, S, H, W)."""
        images = self.images.expand(len(p), *self.images.shape)
        left = self.covariance.filter(images, p, kept)
        return left if u is None else left - self._back(u, p)

    def _back(self, u: Tensor, p: Tensor) -> Tensor:
        assert self.solver is not None
        return self.covariance.filter(self.solver.operator.H_adjoint(u), p, given_noisy)
