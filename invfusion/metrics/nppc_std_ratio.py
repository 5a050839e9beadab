"""The deviation that principal directions predict over the error along them."""

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.calibration import std_ratio
from invfusion.metrics.tools.components import squared_projections


def along_directions(restored: Restorations) -> Tensor:
    """The predicted variance and the squared error along each direction, (n, 2, K) float64."""
    truth = decode(restored.need("truth"))
    actual = squared_projections(restored.need("mean"), truth, restored.need("components"))
    return torch.stack([restored.need("stds").double().square(), actual], dim=1)


NPPC_STD_RATIO = Metric(
    name="nppc_std_ratio",
    label="std ratio",
    better=1.0,
    needs=frozenset({"truth", "components"}),
    values=along_directions,
    statistic=lambda values, _: std_ratio(values.sum(2)),
    calibration="ratio",
)
