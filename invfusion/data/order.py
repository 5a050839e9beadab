"""The order in which training sees the samples: a pure function of (seed, image count)."""

from functools import lru_cache

import torch
from torch import Tensor

from invfusion.rng import generator


def indices(n_samples: int, seed: int, start: int, count: int) -> list[int]:
    """Positions start .. start + count of an endless stream of epochs, each its own seeded permutation of the samples.

    Any part of the stream can be asked for at any time, so resuming at an image count needs no other state.
    """
    if n_samples < 1:
        raise ValueError("an order needs at least one sample")
    positions = range(start, start + count)
    return [int(_permutation(n_samples, seed, p // n_samples)[p % n_samples]) for p in positions]


@lru_cache(maxsize=4)
def _permutation(n_samples: int, seed: int, epoch: int) -> Tensor:
    """One epoch's order, (n_samples,) int64; remembered because neighbouring batches share it."""
    return torch.randperm(n_samples, generator=generator(seed, "order", epoch))
