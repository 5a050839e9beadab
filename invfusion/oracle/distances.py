"""Distances between two sets of draws from a distribution."""

import torch
from torch import Tensor


def unit_directions(n: int, size: int, generator: torch.Generator) -> Tensor:
    """n directions drawn uniformly from the sphere, (n, size) float64."""
    normal = torch.randn(n, size, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(normal, dim=1)


def sliced_wasserstein_squared(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """The squared 2-Wasserstein distance of two sets (n, D), averaged over directions (L, D).

    In one dimension the optimal transport between sets of one size pairs them in sorted order. Above 0 for two sets of
    the same distribution: compare it with that floor. Source: Bonneel et al. 2015.
    """
    along_a, along_b = (a @ directions.T).sort(dim=0).values, (b @ directions.T).sort(dim=0).values
    return float((along_a - along_b).square().mean())
