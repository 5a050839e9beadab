"""Small priors, operators and brute force over a grid."""

import torch
from torch import Tensor

from invfusion.operators import LinearOperator, MatrixOperator
from invfusion.oracle import GaussianMixture
from invfusion.rng import generator, generators

SHAPE = (1, 8, 8)


def mixture(shape: tuple[int, int, int] = SHAPE, n_components: int = 3, rank: int = 4) -> GaussianMixture:
    """Well-separated components with low-rank plus diagonal covariances."""
    draws = generator(0, "tiny prior")
    size = torch.Size(shape).numel()
    weights = torch.rand(n_components, generator=draws, dtype=torch.float64) + 0.3
    return GaussianMixture.of_factors(
        shape,
        weights / weights.sum(),
        0.5 * torch.randn(n_components, size, generator=draws, dtype=torch.float64),
        0.3 * torch.randn(n_components, size, rank, generator=draws, dtype=torch.float64),
        0.01 + 0.05 * torch.rand(n_components, size, generator=draws, dtype=torch.float64),
    )


def draws_of(law: GaussianMixture, n: int, stream: str = "x") -> Tensor:
    return law.sample(generators(0, stream, range(n)))


def rows_of(matrix: list[list[float]], shape: tuple[int, int, int], n: int = 1) -> LinearOperator:
    """The same dense operator for n samples."""
    return MatrixOperator(shape, torch.tensor(matrix, dtype=torch.float32).expand(n, -1, -1))
