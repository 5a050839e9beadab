"""The continuous ranked probability score: a proper score of draws, pixel by pixel."""

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.metrics.base import Metric, Restorations


def crps(draws: Tensor, truth: Tensor) -> Tensor:
    """Of draws (n, S, *J) and truth (n, *J), the mean over entries, (n,) float64:

        (1/S) sum_s |X_s - x|  -  1/(2 S (S-1)) sum_{s != t} |X_s - X_t|

    The fair ensemble form, whose expectation does not depend on S >= 2. With S = 1 the second term is 0: the mean
    absolute error, the score of a point estimate. A single draw of a sampler must not be scored so.
    Source: Ferro 2014, Eq. 8; Gneiting and Raftery 2007, Eq. 20.
    """
    return torch.stack([_one(d.double(), x.double()) for d, x in zip(draws, truth, strict=True)])


def _one(draws: Tensor, truth: Tensor) -> Tensor:
    n = len(draws)
    error = (draws - truth).abs().mean()
    # Of sorted values, sum_{s < t} |X_s - X_t| = sum_i (2 i - n + 1) X_(i), i from 0.
    weights = 2 * torch.arange(n, dtype=draws.dtype, device=draws.device) - n + 1
    between: Tensor = torch.tensordot(weights, draws.sort(dim=0).values, dims=1).mean() / max(n * (n - 1), 1)
    return error - between


def of_forecast(restored: Restorations) -> Tensor:
    """The CRPS of each image's 8-bit draws, in [-1, 1] units, (n,)."""
    return crps(decode(restored.need("draws")), decode(restored.need("truth")))


CRPS = Metric(
    name="crps",
    label="CRPS",
    better="lower",
    decimals=4,
    needs=frozenset({"truth", "forecast"}),
    values=of_forecast,
)
