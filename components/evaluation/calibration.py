"""Whether the uncertainty of posterior samples can be trusted, where the truth is known: curves for held-out images.

Judged on 8-bit images, as people get them, and where something is at stake (`invfusion.metrics.tools.calibration`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.records import listed
from invfusion.codec import decode
from invfusion.metrics import Restorations, cumulative, spread_and_error
from invfusion.metrics.tools.calibration import ranks_at_stake, tarp_of_draws, within

LEVELS = torch.linspace(0, 1, 41, dtype=torch.float64)
# Pixels are grouped by predicted deviation into so many groups of one size.
N_GROUPS = 12
# Two to group by, and two to predict from.
FEWEST_DRAWS = 4


def curves_of_draws(restored: Restorations) -> dict[str, Any]:
    """TARP's curve and the coverage of central intervals over LEVELS, and how reliable the predicted deviation is."""
    draws, truth = restored.need("draws"), restored.need("truth")
    n_within, n, spreads = torch.zeros(len(LEVELS), dtype=torch.long), 0, torch.zeros(4, 0, dtype=torch.float64)
    for i, (uncertain, of_pixels) in enumerate(ranks_at_stake(draws, truth, restored.random())):
        n_within, n = n_within + within(of_pixels, LEVELS), n + len(of_pixels)
        spreads = tallied(torch.cat([spreads, *spreads_of(draws[i], truth[i], uncertain)], dim=1))
    return {
        "tarp": listed(cumulative(tarp_of_draws(draws, truth, restored.random()), LEVELS)),
        "coverage": listed(n_within / max(n, 1)),
        **reliability(spreads),
    }


def spreads_of(draws: Tensor, truth: Tensor, chosen: Tensor) -> Iterator[Tensor]:
    """Of P chosen pixels (C, H, W) of one 8-bit image, (4, P): the variance over half of its draws (S, C, H, W), by
    which they are grouped, 1, what the other half predicts, and how far its mean is off, squared; of both ways round.

    Grouped by the very draws that predict, pixels whose draws happen to agree would seem too sure of themselves. None
    where there are too few draws for two halves.
    """
    if len(draws) < FEWEST_DRAWS:
        return
    for grouping, judged in (halves := draws.chunk(2), halves[::-1]):
        predicted, actual = spread_and_error(decode(judged)[None], decode(truth)[None])
        # Of whole numbers, so that equal ones are equal to the bit.
        n, levels = len(grouping), grouping[:, chosen].long()
        variance = (n * levels.square().sum(0) - levels.sum(0).square()).double() / (n * (n - 1))
        yield torch.stack([variance, torch.ones_like(variance), predicted[0, chosen], actual[0, chosen]])


def tallied(spreads: Tensor) -> Tensor:
    """Columns (4, P) that begin with equal numbers added up, (4, K) in ascending order: among all pixels of hundreds of
    large images there are some thousands of different ones."""
    values, place = torch.unique(spreads[0], return_inverse=True)
    sums = (torch.bincount(place, weights=row, minlength=len(values)) for row in spreads[1:])
    return torch.stack([values, *sums])


def curves_of_components(values: Tensor) -> dict[str, Any]:
    """Of each principal direction the predicted deviation and the actual one, over all images.

    values: (n, 2, K), predicted variances and squared errors.
    """
    predicted, actual = values.mean(0).sqrt()
    return {"predicted": listed(predicted), "actual": listed(actual)}


def reliability(spreads: Tensor) -> dict[str, list[float]]:
    """Root mean predicted variance and root mean squared error of pixels in N_GROUPS groups of one size, by another
    variance of theirs; pixels of equal variance share what they have. spreads: `tallied`."""
    counts, predicted, actual = torch.cat([torch.zeros(3, 1, dtype=torch.float64), spreads[1:].cumsum(1)], 1).numpy()
    if counts[-1] < N_GROUPS:
        return {"predicted": [], "actual": []}
    ends = np.linspace(0, counts[-1], N_GROUPS + 1)
    means = [np.diff(np.interp(ends, counts, sums)) * N_GROUPS / counts[-1] for sums in (predicted, actual)]
    return {name: np.sqrt(of).tolist() for name, of in zip(("predicted", "actual"), means, strict=True)}
