"""A Gaussian prior with full covariance, its exact denoisers, and the exact law of what a linear sampler draws.

With a linear denoiser most samplers are affine in the noise that they use: output = mean + sum_i C_i z_i. Feeding them
unit vectors, one per row of a batch, gives mean and C without any statistical error.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from invfusion.operators import LinearOperator, MaskOperator, MatrixOperator, Measurement, StridedConvolution
from invfusion.rng import generator
from invfusion.samplers import Sampler, base

SHAPE = (1, 4, 4)
N = 16


@functools.cache
def prior() -> tuple[Tensor, Tensor]:
    """Mean (N,) and covariance (N, N); neither commutes with any of the operators below."""
    draws = generator(0, "prior")
    factor = (
        torch.randn(N, N, generator=draws, dtype=torch.float64) / 8 + torch.diag(torch.linspace(0.2, 0.6, N)).double()
    )
    return 0.3 * torch.randn(N, generator=draws, dtype=torch.float64), factor @ factor.T


def operators() -> dict[str, LinearOperator]:
    """One mask, one strided blur and one matrix whose singular values differ well."""
    draws = generator(0, "operators")
    rows = torch.randn(1, 6, N, generator=draws, dtype=torch.float64)
    kernel = torch.rand(1, 4, 4, generator=draws, dtype=torch.float64)
    return {
        "mask": MaskOperator(SHAPE, (torch.rand(1, 1, 4, 4, generator=draws) < 0.5).double()),
        "blur": StridedConvolution(SHAPE, kernel / kernel.sum(), stride=2),
        "matrix": MatrixOperator(SHAPE, rows / rows.norm(dim=2, keepdim=True)),
    }


@dataclass(frozen=True)
class Problem:
    """y (M,) = A x + sigma_y n, with A = U diag(q) V^T; V (N, N) is complete, q (N,) zero in the null space."""

    operator: LinearOperator
    A: Tensor
    V: Tensor
    q: Tensor
    y: Tensor
    sigma_y: float

    @classmethod
    def of(cls, name: str, sigma_y: float) -> "Problem":
        operator = operators()[name].double()
        A = operator.H(torch.eye(N, dtype=torch.float64).view(1, N, *SHAPE))[0].flatten(1).T
        _, q, Vh = torch.linalg.svd(A)
        q = torch.cat([q, q.new_zeros(N - len(q))])
        q = q.where(q > 1e-8, 0)
        mean, covariance = prior()
        draws = generator(0, "truth")
        x = mean + torch.linalg.cholesky(covariance) @ torch.randn(N, generator=draws, dtype=torch.float64)
        noise = torch.randn(len(A), generator=draws, dtype=torch.float64)
        y = operator.H(operator.H_pinv((A @ x + sigma_y * noise).view(1, *operator.measurement_shape)))
        return cls(operator, A, Vh.T, q, y.flatten(), sigma_y)

    def measurement(self, n: int) -> Measurement:
        """n copies."""
        rows = [0] * n
        y = self.y.view(1, *self.operator.measurement_shape)
        return Measurement(y[rows], self.operator.select(rows), torch.full((n,), self.sigma_y, dtype=torch.float64))

    def y_bar(self) -> Tensor:
        """V^T H_pinv y, (N,): the measurement along each right singular vector; 0 in the null space."""
        return self.V.T @ torch.linalg.pinv(self.A, rtol=1e-8) @ self.y

    def posterior(self, noise: float | None = None) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x given y."""
        mean, covariance = prior()
        gram = self.A @ covariance @ self.A.T + (noise or self.sigma_y) ** 2 * torch.eye(len(self.A)).double()
        gain = covariance @ self.A.T @ torch.linalg.pinv(gram, rtol=1e-10)
        return mean + gain @ (self.y - self.A @ mean), covariance - gain @ self.A @ covariance


def affine_denoiser(sigma: float, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """G, g with E[x | x + sigma n] = G x_sigma + g."""
    G = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(N).double())
    return G, mean - G @ mean


class ExactDenoiser:
    """The posterior mean given the noisy image alone, or of any other Gaussian; counts its calls."""

    def __init__(self, mean: Tensor | None = None, covariance: Tensor | None = None) -> None:
        own = prior()
        self.mean = own[0] if mean is None else mean
        self.covariance = own[1] if covariance is None else covariance
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, measurement=None, class_labels=None) -> Tensor:
        self.calls += 1
        G, g = affine_denoiser(float(sigma[0]), self.mean, self.covariance)
        return (x.flatten(1) @ G.T + g).view(x.shape)


def law(
    sampler: Sampler, denoiser: Callable[..., Tensor], measurement: Callable[[int], Measurement | None]
) -> tuple[Tensor, Tensor, int]:
    """Exact mean (N,) and covariance (N, N) of an affine sampler's output, and the number of calls that it reports."""
    n_draws = _count_draws(sampler, denoiser, measurement(1))
    size = 1 + N * (1 + n_draws)
    rows = iter(range(1, size, N))

    def unit_vectors(*_: object, **__: object) -> Tensor:
        noise, first = torch.zeros(size, N, dtype=torch.float64), next(rows)
        noise[first : first + N] = torch.eye(N)
        return noise.view(size, *SHAPE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "randn", unit_vectors)
        output = sampler.sample(denoiser, measurement(size), unit_vectors(), generators=[torch.Generator()] * size)
    x = output.x.flatten(1)
    responses = x[1:] - x[0]
    return x[0], responses.T @ responses, output.nfe


def _count_draws(sampler: Sampler, denoiser: Callable[..., Tensor], measurement: Measurement | None) -> int:
    calls = []

    def nothing(*_: object, **__: object) -> Tensor:
        calls.append(1)
        return torch.zeros(1, *SHAPE, dtype=torch.float64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "randn", nothing)
        sampler.sample(denoiser, measurement, nothing(), generators=[torch.Generator()])
    return len(calls) - 1
