"""The deviation that draws predict over their actual error."""

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.calibration import spread_and_error, std_ratio


def spread_and_error_of(restored: Restorations) -> Tensor:
    """The predicted variance and the squared error of the draws' mean, summed over pixels: (n, 2) float64."""
    parts = spread_and_error(decode(restored.need("draws")), decode(restored.need("truth")))
    return torch.stack([part.flatten(1).sum(1) for part in parts], dim=1)


STD_RATIO = Metric(
    name="std_ratio",
    label="std ratio",
    better=1.0,
    needs=frozenset({"truth", "draws"}),
    values=spread_and_error_of,
    statistic=std_ratio,
    calibration="ratio",
)
