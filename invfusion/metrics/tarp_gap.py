"""Whether the truth looks like one more draw, seen from reference images (TARP)."""

from torch import Tensor

from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.calibration import tarp_of_draws, uniformity_gap


def tarp(restored: Restorations) -> Tensor:
    """TARP's rank of each truth among its draws, (n,) float64, uniform in [0, 1] for calibrated draws."""
    return tarp_of_draws(restored.need("draws"), restored.need("truth"), restored.random())


# The distance of TARP's curve from the diagonal.
TARP_GAP = Metric(
    name="tarp_gap",
    label="TARP gap",
    better="lower",
    needs=frozenset({"truth", "draws"}),
    values=tarp,
    statistic=lambda ranks, _: lambda weights, _: weights.new_tensor([uniformity_gap(ranks, w) for w in weights]),
    calibration="gap",
)
