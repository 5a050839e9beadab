"""How often the central 90% interval of the draws holds the true pixel."""

from torch import Tensor

from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.calibration import at_stake, ranks_of_truth

LEVEL = 0.9


def coverage_of_pixels(restored: Restorations) -> Tensor:
    """The share of each image's uncertain pixels that lie within their interval, (n,)."""
    draws, truth = restored.need("draws"), restored.need("truth")
    uncertain = at_stake(draws, truth)
    # TARP's ranks are drawn first, so that all that is drawn stands in one order.
    _, of_pixels = ranks_of_truth(draws, truth, restored.random())
    inside = ((of_pixels - 0.5).abs() <= LEVEL / 2) & uncertain
    return inside.flatten(1).sum(1) / uncertain.flatten(1).sum(1).clamp(min=1)


COVERAGE_90 = Metric(
    name="coverage_90",
    label="90% covers",
    better=LEVEL,
    needs=frozenset({"truth", "draws"}),
    values=coverage_of_pixels,
)
