"""Gaussian mixtures over images, and their exact posteriors: a mixture given a linear measurement is a mixture again.

With a component x ~ N(mu, S) and coordinates z = V^T x + n, n ~ N(0, N), Bayes' rule gives

    G = S V (V^T S V + N)^-1,   mu' = mu + G (z - V^T mu),   S' = S - G V^T S,   w' ~ w N(z; V^T mu, V^T S V + N).

A measurement y = Hx + sigma_y n becomes such coordinates by the singular value decomposition H = U diag(s) V^T over the
non-zero s: z = diag(1/s) U^T y and N = diag(sigma_y / s)^2, so that sigma_y = 0 and operators without full rank need no
case of their own. A noisy image x + sigma n is the case V = I, cheap in the basis of eigenvectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators import LinearOperator, Measurement

# Singular values below this share of the largest are zero.
RANK_TOLERANCE = 1e-9


@dataclass(frozen=True)
class GaussianMixture:
    """The law sum_k w_k N(mu_k, Q_k diag(v_k) Q_k^T) of an image, for each of N rows; float64 inside.

    A prior has one row, a posterior one row per measurement or noisy image. Rows of one group share eigenvectors.

    image_shape: (C, H, W), D = C H W; log_weights: (N, K); means: (N, K, D); variances: (N, K, D), the eigenvalues;
    basis: (G, K, D, D), eigenvectors in columns; group: (N,), each row's index into the first axis of `basis`.
    """

    image_shape: tuple[int, int, int]
    log_weights: Tensor
    means: Tensor
    variances: Tensor
    basis: Tensor
    group: Tensor

    @classmethod
    def of_factors(
        cls, image_shape: Sequence[int], weights: Tensor, means: Tensor, factors: Tensor, diagonal: Tensor
    ) -> Self:
        """A prior with low-rank plus diagonal covariances F_k F_k^T + diag(d_k).

        weights: (K,), summing to one; means: (K, D); factors: (K, D, r); diagonal: (D,) or (K, D), positive.
        Raises `ShapeError` where these do not fit together.
        """
        c, h, w = image_shape
        k, d = means.shape
        if d != c * h * w or weights.shape != (k,) or factors.shape[:2] != (k, d):
            raise ShapeError(
                f"a mixture over images {tuple(image_shape)} needs weights (K,), means (K, {c * h * w}) and factors "
                f"(K, {c * h * w}, r), got {tuple(weights.shape)}, {tuple(means.shape)} and {tuple(factors.shape)}"
            )
        covariances = factors.double() @ factors.double().mT + torch.diag_embed(diagonal.double().expand(k, d))
        variances, basis = _spectrum(covariances)
        return cls(
            image_shape=(c, h, w),
            log_weights=weights.double().log()[None],
            means=means.double()[None],
            variances=variances[None],
            basis=basis[None],
            group=torch.zeros(1, dtype=torch.long),
        )

    @property
    def n_rows(self) -> int:
        return len(self.log_weights)

    @property
    def size(self) -> int:
        """D, the numbers in an image."""
        return self.means.shape[-1]

    def rows(self, index: Sequence[int]) -> "GaussianMixture":
        """Some of the rows."""
        picked = torch.as_tensor(list(index), dtype=torch.long)
        return replace(
            self,
            log_weights=self.log_weights[picked],
            means=self.means[picked],
            variances=self.variances[picked],
            group=self.group[picked],
        )

    # Moments.

    @property
    def mean(self) -> Tensor:
        """(N, C, H, W) float64."""
        return self._as_images((self.log_weights.exp()[..., None] * self.means).sum(1))

    def covariance(self) -> Tensor:
        """(N, D, D) float64: within the components, and between their means."""
        weights = self.log_weights.exp()[..., None]
        centred = self.means - self.mean.flatten(1)[:, None]
        between = (weights * centred).mT @ centred
        scaled = self.basis[self.group] * (weights * self.variances)[:, :, None, :]
        within: Tensor = (scaled @ self.basis[self.group].mT).sum(1)
        return within + between

    def principal_components(self, n: int) -> tuple[Tensor, Tensor]:
        """The n unit directions of largest variance, (N, n, C, H, W), and the standard deviations, (N, n); float64."""
        variances, directions = torch.linalg.eigh(self.covariance())
        leading = directions.flip(-1)[..., :n].mT
        stds = variances.flip(-1)[:, :n].clamp(min=0).sqrt()
        return self._as_images(leading), stds

    # Draws and densities.

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One exact draw per generator, (B, C, H, W) float64; B is the number of rows, or any number for a prior."""
        law = self._for_batch(len(generators))
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        normal = torch.stack([torch.randn(self.size, generator=g, dtype=torch.float64) for g in generators])
        cumulative = law.log_weights.softmax(1).cumsum(1)
        chosen = (uniform[:, None] > cumulative[:, :-1]).sum(1)
        row = torch.arange(len(generators))
        spread = law.variances[row, chosen].sqrt() * normal
        drawn = law.means[row, chosen].clone()
        for g, k in set(zip(law.group.tolist(), chosen.tolist(), strict=True)):
            members = (law.group == g) & (chosen == k)
            drawn[members] += spread[members] @ self.basis[g, k].T
        return self._as_images(drawn)

    def log_density(self, x: Tensor) -> Tensor:
        """ln p(x) of images (B, C, H, W), (B,) float64; all variances must be positive."""
        law = self._for_batch(len(x))
        coordinates = law._into_basis(x.to(law.means).flatten(1)[:, None] - law.means)
        return (law.log_weights + _log_normal(coordinates, law.variances)).logsumexp(1)

    # Bayes' rule.

    def given_noisy(self, x: Tensor, sigma: Tensor) -> "GaussianMixture":
        """The law of the clean image given x = clean + sigma * noise, x (B, C, H, W), sigma (B,) or (), positive.

        Its mean is the exact denoiser.
        """
        law = self._for_batch(len(x))
        noise = sigma.to(law.means).square().reshape(-1, 1, 1)
        coordinates = law._into_basis(x.to(law.means).flatten(1)[:, None] - law.means)
        total = law.variances + noise
        log_weights = law.log_weights + _log_normal(coordinates, total)
        return replace(
            law,
            log_weights=log_weights.log_softmax(1),
            means=law.means + law._out_of_basis(law.variances / total * coordinates),
            variances=law.variances * noise / total,
        )

    def given(self, measurement: Measurement) -> "GaussianMixture":
        """The posterior of each image of a batch given y = Hx + sigma_y n: one row per measurement.

        Rows with equal operator and noise level share one factorisation. Raises `ShapeError` unless this is a prior
        over images of the operator's shape.
        """
        operator = measurement.operator
        if self.n_rows != 1 or operator.image_shape != self.image_shape:
            raise ShapeError(
                f"only a prior over images {operator.image_shape} can be given a measurement of such images; this is "
                f"a law of {self.n_rows} rows over images {self.image_shape}"
            )
        group = distinct_operators(measurement)
        parts = [self._given_one(measurement, (group == g).nonzero()[:, 0]) for g in range(int(group.max()) + 1)]
        order = torch.cat([(group == g).nonzero()[:, 0] for g in range(len(parts))]).argsort()
        return replace(
            self,
            log_weights=torch.cat([part.log_weights for part in parts])[order],
            means=torch.cat([part.means for part in parts])[order],
            variances=torch.cat([part.variances for part in parts])[order],
            basis=torch.cat([part.basis for part in parts]),
            group=group,
        )

    def _given_one(self, measurement: Measurement, members: Tensor) -> "GaussianMixture":
        """The posteriors of rows that have one operator and one noise level."""
        left, s, directions = _thin_svd(operator_matrix(measurement.operator, int(members[0])))
        z = measurement.y[members].double().flatten(1) @ left / s
        noise = (measurement.sigma_y[members[0]].double() / s).square()
        seen = self._covariances @ directions
        factor = torch.linalg.cholesky(directions.T @ seen + torch.diag(noise))
        # T^T T is what the measurement takes from the covariance.
        taken = torch.linalg.solve_triangular(factor, seen.mT, upper=False)
        gap = z[:, None] - self.means @ directions
        whitened = torch.linalg.solve_triangular(factor, gap.permute(1, 2, 0), upper=False)
        variances, basis = _spectrum(self._covariances - taken.mT @ taken)
        log_likelihood = -0.5 * whitened.square().sum(1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(1)[:, None]
        return replace(
            self,
            log_weights=(self.log_weights + log_likelihood.T).log_softmax(1),
            means=self.means + (taken.mT @ whitened).permute(2, 0, 1),
            variances=variances.expand(len(members), -1, -1),
            basis=basis[None],
        )

    @cached_property
    def _covariances(self) -> Tensor:
        """Of a prior's components, (K, D, D)."""
        return (self.basis[0] * self.variances[0][:, None, :]) @ self.basis[0].mT

    # Shapes and bases.

    def _for_batch(self, n: int) -> "GaussianMixture":
        """As many rows as images; a prior's one row stands for all."""
        if self.n_rows == n:
            return self
        if self.n_rows != 1:
            raise ShapeError(f"a law of {self.n_rows} rows does not fit a batch of {n} images")
        return replace(
            self,
            log_weights=self.log_weights.expand(n, -1),
            means=self.means.expand(n, -1, -1),
            variances=self.variances.expand(n, -1, -1),
            group=self.group.expand(n),
        )

    def _into_basis(self, v: Tensor) -> Tensor:
        return self._by_group(v, self.basis)

    def _out_of_basis(self, v: Tensor) -> Tensor:
        return self._by_group(v, self.basis.mT)

    def _by_group(self, v: Tensor, matrices: Tensor) -> Tensor:
        """v (N, K, D) times each row's matrices (K, D, D)."""
        if len(matrices) == 1:
            return _rotate(v, matrices[0])
        order = self.group.argsort(stable=True)
        parts = [_rotate(v[self.group == g], matrix) for g, matrix in enumerate(matrices)]
        return torch.cat(parts)[order.argsort()]

    def _as_images(self, flat: Tensor) -> Tensor:
        return flat.reshape(*flat.shape[:-1], *self.image_shape)


def distinct_operators(measurement: Measurement) -> Tensor:
    """(B,) long: samples with equal operators and noise levels have equal numbers, counted from 0."""
    tensors = [t.double().flatten(1) for t in measurement.operator.tensors().values()]
    described = torch.cat([measurement.sigma_y.double()[:, None], *tensors], dim=1)
    group: Tensor = torch.unique(described, dim=0, return_inverse=True)[1]
    return group


def operator_matrix(operator: LinearOperator, row: int = 0) -> Tensor:
    """The matrix (m, D) of one sample's operator, float64."""
    one = operator.select([row])
    doubled = {name: tensor.double() for name, tensor in one.tensors().items()}
    exact = type(one).from_tensors(one.image_shape, doubled, one.attributes())
    size = torch.Size(one.image_shape).numel()
    pixels = torch.eye(size, dtype=torch.float64, device=exact.tensors().popitem()[1].device)
    return exact.H(pixels.reshape(1, size, *one.image_shape)).reshape(size, -1).T


def _thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), the non-zero singular values (r,) and V (D, r)."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > RANK_TOLERANCE * s[:1]
    return u[:, kept], s[kept], vh[kept].T


def _spectrum(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (K, D) and eigenvectors (K, D, D) in columns; what rounding made negative is zero."""
    variances, basis = torch.linalg.eigh(covariances)
    return variances.clamp(min=0), basis


def _rotate(v: Tensor, matrices: Tensor) -> Tensor:
    return (v.transpose(0, 1) @ matrices).transpose(0, 1)


def _log_normal(coordinates: Tensor, variances: Tensor) -> Tensor:
    """ln N(coordinates; 0, diag(variances)) over the last axis."""
    terms = coordinates.square() / variances + variances.log() + math.log(2 * math.pi)
    return -0.5 * terms.sum(-1)
