"""Intervals by resampling images."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor

from invfusion.errors import ShapeError

LEVEL = 0.95
# Sets of resamples that are kept, and the numbers that one of them may have, 16 MB.
KEPT, KEPT_NUMBERS = 4, 2**21

Interval = tuple[float, float]


def resamples(n: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`count` times: how often each of n images is drawn when n are drawn with replacement, (n,) float64."""
    for _ in range(count):
        drawn = torch.randint(n, (n,), generator=generator)
        yield torch.bincount(drawn, minlength=n).double()


def resampled(n: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of them at once, (count, n) float64."""
    return torch.stack(list(resamples(n, count, generator)))


def mean_interval(values: Tensor, count: int, generator: torch.Generator) -> Interval:
    """95% percentile bootstrap interval of the mean of values (n,) over n images."""
    if values.ndim != 1 or len(values) == 0:
        raise ShapeError(f"an interval needs one value per image, got shape {tuple(values.shape)}")
    exact = values.double()
    means = [float(w @ exact) / len(values) for w in remembered_resamples(len(values), count, generator)]
    return interval_of(torch.tensor(means, dtype=torch.float64))


def remembered_resamples(n: int, count: int, generator: torch.Generator) -> Iterable[Tensor]:
    """`resamples` of n images, (n,) each, kept where they are small: all metrics of a set resample its images alike."""
    if n * count > KEPT_NUMBERS:
        return resamples(n, count, generator)
    weights, state = _kept(n, count, bytes(generator.get_state().tolist()))
    generator.set_state(state)
    return weights


@lru_cache(maxsize=KEPT)
def _kept(n: int, count: int, state: bytes) -> tuple[Tensor, Tensor]:
    """The resamples of a generator in some state, (count, n), and its state after them."""
    generator = torch.Generator()
    generator.set_state(torch.tensor(list(state), dtype=torch.uint8))
    return resampled(n, count, generator), generator.get_state()


def statistic_interval(
    statistic: Callable[[Tensor], float], value: float, n: int, count: int, generator: torch.Generator
) -> Interval:
    """95% bootstrap interval of a statistic that is not a mean, as a function of the weights (n,) of the images.

    Resampled sets have fewer distinct images, which shifts a distance between sets: so the spread of the resampled
    values is laid around `value`. It says how much the number varies at this n, not how far its own bias carries it.
    """
    values = torch.tensor([statistic(w) for w in resamples(n, count, generator)], dtype=torch.float64)
    return interval_of(laid_around(value, values))


def laid_around(value: float, values: Tensor, nonnegative: bool = False) -> Tensor:
    """Resampled values (R,) with their spread, but with `value` as their mean; see `statistic_interval`.

    nonnegative: of a distance, whose values are relative to their mean, so that none is below 0.
    """
    if nonnegative and float(values.mean()) > 0:
        return value * values / values.mean()
    return value + (values - values.mean())


def interval_of(values: Tensor) -> Interval:
    """Where the middle 95% of resampled values (R,) lie."""
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high
