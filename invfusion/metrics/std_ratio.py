"""The deviation that draws predict over their actual error."""

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.calibration import spread_and_error, std_ratio


def spread_and_error_of(restored: Restorations) -> Tensor:
    """The predicted variance and the squared error of the draws' mean, summed over pixels: (n, 2) float64."""
    pairs = zip(torch.split(restored.need("draws"), 1), torch.split(restored.need("truth"), 1), strict=True)
    sums = [[part.sum() for part in spread_and_error(decode(draws), decode(truth))] for draws, truth in pairs]
    return torch.tensor(sums, dtype=torch.float64)


STD_RATIO = Metric(
    name="std_ratio",
    label="std ratio",
    better=1.0,
    needs=frozenset({"truth", "draws"}),
    values=spread_and_error_of,
    statistic=std_ratio,
    calibration="ratio",
)
