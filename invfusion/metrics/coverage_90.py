"""How often the central 90% interval of the draws holds the true pixel."""

import torch
from torch import Tensor

from invfusion.metrics.base import Metric, Restorations, Weighted
from invfusion.metrics.tools.calibration import ranks_at_stake

LEVEL = 0.9


def pixels_within(restored: Restorations) -> Tensor:
    """Of each image, its uncertain pixels within their interval, and all of them: (n, 2) float64."""
    found = ranks_at_stake(restored.need("draws"), restored.need("truth"), restored.random())
    counts = [(int(((of_pixels - 0.5).abs() <= LEVEL / 2).sum()), len(of_pixels)) for _, of_pixels in found]
    return torch.tensor(counts, dtype=torch.float64)


def share(values: Tensor, _: Tensor | None) -> Weighted:
    """Of all uncertain pixels, from counts (n, 2): a mean over images would count those without any as missed."""

    def shares(weights: Tensor, _: Tensor | None = None) -> Tensor:
        inside, uncertain = (weights @ values.double()).T
        found: Tensor = inside / uncertain.clamp(min=1)
        return found

    return shares


COVERAGE_90 = Metric(
    name="coverage_90",
    label="90% covers",
    better=LEVEL,
    needs=frozenset({"truth", "draws"}),
    values=pixels_within,
    statistic=share,
)
