"""How often the central 90% interval of the draws holds the true pixel."""

import torch
from torch import Tensor

from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.calibration import ranks_at_stake

LEVEL = 0.9


def coverage_of_pixels(restored: Restorations) -> Tensor:
    """The share of each image's uncertain pixels that lie within their interval, (n,)."""
    found = ranks_at_stake(restored.need("draws"), restored.need("truth"), restored.random())
    counts = [(int(((of_pixels - 0.5).abs() <= LEVEL / 2).sum()), len(of_pixels)) for _, of_pixels in found]
    inside, uncertain = torch.tensor(counts).T
    share: Tensor = inside / uncertain.clamp(min=1)
    return share


COVERAGE_90 = Metric(
    name="coverage_90",
    label="90% covers",
    better=LEVEL,
    needs=frozenset({"truth", "draws"}),
    values=coverage_of_pixels,
)
