"""What a Gaussian prior says about images given their measurements.

With C_p = (C^-1 + p I)^-1, the covariance of x ~ N(mu, C) given a noisy image of precision p = 1 / sigma^2, and m_p its
mean, mu where none is given, all follows from the system K_p = H C_p H^T + sigma_y^2 I of `solvers`:

    E[x | x_sigma, y] = m_p + C_p H^T K_p^-1 (y - H m_p),        Cov[x | x_sigma, y] = C_p - C_p H^T K_p^-1 H C_p.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.gaussian.covariance import Covariance, LowRank, given_noisy
from invfusion.gaussian.solvers import Solver, System, aligned_to, in_float64, solver_for
from invfusion.operators.base import LinearOperator, Measurement
from invfusion.rng import generator

SUBSPACE_ITERATIONS = 60
SUBSPACE_TOLERANCE = 1e-9
OVERSAMPLING = 8


class GaussianPosterior:
    """The law of B images (C, H, W) given their measurements; float64 inside, float32 where it answers.

    What depends on the operator and y alone is computed once. measurement: None (or one without entries) where nothing
    is known of the `batch_size` images.
    """

    def __init__(
        self, mean: Tensor, covariance: Covariance, measurement: Measurement | None, batch_size: int | None = None
    ) -> None:
        self.prior_mean, self.covariance = mean, covariance
        self.batch_size = len(measurement.y) if measurement is not None else batch_size or 1
        self.image_shape = tuple(mean.shape)
        nothing = measurement is None or measurement.y.numel() == 0
        self._measurement = None if nothing else measurement

    @cached_property
    def mean(self) -> Tensor:
        """E[x | y], (B, C, H, W) float32: the Wiener filter's estimate."""
        return self._mean.float()

    @cached_property
    def variance(self) -> Tensor:
        """The mean posterior variance of a pixel, (B,) float32."""
        system = None if self._measurement is None else self._given_y
        return self._variance(self._nothing, system).float()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_sigma, y] for x_sigma (B, C, H, W) of noise levels sigma (B,) or (), positive: float32.

        Differentiable with respect to x_sigma.
        """
        return self.denoise_with_variance(x, sigma)[0]

    def denoise_with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What `denoise` gives, and the mean posterior variance of a pixel, (B,) float32."""
        p, system = self._at(x, sigma)
        estimate = self._estimate(x.double(), p, system)
        return estimate.float(), self._variance(p, system).float()

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One exact draw for each image, row i from generator i: (B, C, H, W) float32.

        An image and a measurement are drawn from the prior, and the image is moved by what the posterior mean of the
        actual measurement differs from that of the drawn one. Source: Hoffman & Ribak 1991; Doucet 2010.
        """
        if len(generators) != self.batch_size:
            raise ShapeError(f"{self.batch_size} images need as many generators, got {len(generators)}")
        white = self._normal(self.image_shape, generators)
        drawn = self.covariance.filter(white, self._nothing, lambda c, p: (c + 0 * p).sqrt()) + self.prior_mean
        if self._measurement is None:
            return drawn.float()
        y, H, noise = self._exact
        level = aligned_to(noise.sqrt(), y)
        measured = H.H(drawn) + level * self._normal(H.measurement_shape, generators)
        return (drawn + self._back(y - measured, self._nothing, self._given_y)).float()

    def principal_components(self, n: int, iterations: int = SUBSPACE_ITERATIONS) -> tuple[Tensor, Tensor]:
        """The n unit directions of largest posterior variance (B, n, C, H, W), and deviations along them (B, n).

        By subspace iteration: at most `iterations` products with the covariance, fewer where the deviations settle.
        Each direction's entry of largest magnitude is positive: a network that corrects directions must always meet the
        same of the two signs that an eigenvector may have.
        """
        k = min(n + OVERSAMPLING, self.prior_mean.numel())
        start = torch.randn(self.prior_mean.numel(), k, generator=generator(0, "gaussian/subspace"))
        if isinstance(self.covariance, LowRank):
            leading = self.covariance.flat_basis[:, : k // 2]
            start = torch.cat((leading.cpu(), start[:, leading.shape[1] :].double()), dim=1)
        basis = start.to(self.prior_mean).expand(self.batch_size, -1, -1)
        found = basis.new_full((self.batch_size, n), math.inf)
        for _ in range(iterations):
            basis = torch.linalg.qr(basis)[0]
            images = basis.mT.reshape(self.batch_size, k, *self.image_shape)
            product = self._covariance_times(images).flatten(2).mT
            values, turn = torch.linalg.eigh(_symmetric(basis.mT @ product))
            variances, turn = values.flip(1)[:, :n], turn.flip(2)
            directions, basis = basis @ turn[:, :, :n], product @ turn
            if bool(((variances - found).abs() <= SUBSPACE_TOLERANCE * variances[:, :1]).all()):
                break
            found = variances
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        images = (directions * largest.sign()).mT.reshape(self.batch_size, n, *self.image_shape)
        return images.float(), variances.clamp(min=0).sqrt().float()

    @property
    def log_evidence(self) -> Tensor:
        """ln p(y) in nats, (B,) float64: of the density on the range of H where sigma_y = 0 or H has zero rows.

        Raises `OperatorError` where conjugate gradients solve: of stationary priors under all but circular blurs, and
        of large measurements of an operator whose singular values are not known.
        """
        if self._measurement is None:
            return self.prior_mean.new_zeros(self.batch_size)
        y, H, _ = self._exact
        gap = y - H.H(self.prior_mean.expand(self.batch_size, *self.image_shape))
        inside = self._solver.in_range(gap)
        energy = (inside * self._given_y.solve(inside[:, None])[:, 0]).flatten(1).sum(1)
        return -0.5 * (energy + self._given_y.log_determinant())

    # The parts.

    @cached_property
    def _nothing(self) -> Tensor:
        """The precision of no noisy image, (B,)."""
        return self.prior_mean.new_zeros(self.batch_size)

    @cached_property
    def _exact(self) -> tuple[Tensor, LinearOperator, Tensor]:
        """y, the operator and the noise variances (B,), float64 and on the prior's device."""
        assert self._measurement is not None
        measurement = self._measurement.to(self.prior_mean.device)
        return measurement.y.double(), in_float64(measurement.operator), measurement.sigma_y.double().square()

    @cached_property
    def _solver(self) -> Solver:
        assert self._measurement is not None
        _, operator, noise = self._exact
        return solver_for(self.covariance, operator, noise, self._measurement.is_noisy)

    @cached_property
    def _given_y(self) -> System:
        return self._solver.alone

    @cached_property
    def _mean(self) -> Tensor:
        mean = self.prior_mean.expand(self.batch_size, *self.image_shape)
        if self._measurement is None:
            return mean
        y, H, _ = self._exact
        return mean + self._back(y - H.H(mean), self._nothing, self._given_y)

    def _at(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, System | None]:
        """The precision of noisy images x (B,), and the system there; None where there is no measurement."""
        if tuple(x.shape) != (self.batch_size, *self.image_shape):
            raise ShapeError(f"expected images {(self.batch_size, *self.image_shape)}, got {tuple(x.shape)}")
        p = sigma.double().reshape(-1).pow(-2).expand(self.batch_size).to(self.prior_mean.device)
        return p, None if self._measurement is None else self._solver.at(p)

    def _estimate(self, x: Tensor, p: Tensor, system: System | None) -> Tensor:
        """`system` is None where there is no measurement."""
        mean = self.prior_mean + self.covariance.filter(x - self.prior_mean, p, lambda c, p: c * p / (1 + c * p))
        if system is None:
            return mean
        y, H, _ = self._exact
        return mean + self._back(y - H.H(mean), p, system)

    def _back(self, gap: Tensor, p: Tensor, system: System) -> Tensor:
        """C_p H^T K_p^-1 gap."""
        u = system.solve(gap[:, None])[:, 0]
        return self.covariance.filter(self._exact[1].H_adjoint(u), p, given_noisy)

    def _variance(self, p: Tensor, system: System | None) -> Tensor:
        mean = self.covariance.mean_of(p, given_noisy) if system is None else system.variance()
        return mean.clamp(min=0)

    def _covariance_times(self, v: Tensor) -> Tensor:
        """Cov[x | y] v for v (B, K, C, H, W)."""
        open_prior = self.covariance.filter(v, self._nothing, given_noisy)
        if self._measurement is None:
            return open_prior
        H = self._exact[1]
        u = self._given_y.solve(H.H(open_prior))
        return open_prior - self.covariance.filter(H.H_adjoint(u), self._nothing, given_noisy)

    def _normal(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> Tensor:
        rows = [torch.randn(tuple(shape), generator=g, dtype=torch.float64) for g in generators]
        return torch.stack(rows).to(self.prior_mean.device)


def _symmetric(matrices: Tensor) -> Tensor:
    return (matrices + matrices.mT) / 2
