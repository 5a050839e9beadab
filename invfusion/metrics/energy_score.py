"""The energy score: a proper score of posterior draws, which rewards accuracy and calibration together."""

import math

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.metrics.base import Metric, Restorations


def energy_score(draws: Tensor, truth: Tensor) -> Tensor:
    """Of draws (n, S, *J) and truth (n, *J) with D entries each, (n,) float64:

        (1/S) sum_s |X_s - x| / sqrt(D)  -  1/(2 S (S-1)) sum_{s != t} |X_s - X_t| / sqrt(D)

    In units of the entries, like a root mean squared error. Unbiased for any S >= 2, so values of different numbers of
    draws can be compared; its expectation is least where the draws follow the law of the truth. One image may score
    below 0. With S = 1 the second term is 0: the score of a point estimate, whose forecast has no spread, which is its
    root mean squared error. A single draw of a sampler must not be scored so.
    Source: Gneiting and Raftery 2007, Eq. 21, with beta = 1.
    """
    return torch.stack([_one(d.double().flatten(1), x.double().flatten()) for d, x in zip(draws, truth, strict=True)])


def _one(draws: Tensor, truth: Tensor) -> Tensor:
    n = len(draws)
    error = (draws - truth).norm(dim=1).mean()
    between = torch.pdist(draws).sum() / max(n * (n - 1), 1)
    score: Tensor = (error - between) / math.sqrt(len(truth))
    return score


def of_forecast(restored: Restorations) -> Tensor:
    """The energy score of each image's 8-bit draws, (n,)."""
    return energy_score(decode(restored.need("draws")), decode(restored.need("truth")))


ENERGY_SCORE = Metric(
    name="energy_score",
    label="energy score",
    better="lower",
    decimals=4,
    main=True,
    needs=frozenset({"truth", "forecast"}),
    values=of_forecast,
)
