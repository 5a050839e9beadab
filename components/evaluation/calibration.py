"""Whether the uncertainty of posterior samples can be trusted, where the truth is known: curves for held-out images.

Judged on 8-bit images, as people get them, and where something is at stake (`invfusion.metrics.tools.calibration`).
"""

from collections.abc import Iterator
from typing import Any

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
    n_within, n = torch.zeros(len(LEVELS), dtype=torch.long), 0
    spreads: list[tuple[Tensor, Tensor, Tensor]] = []
    for i, (uncertain, of_pixels) in enumerate(ranks_at_stake(draws, truth, restored.random())):
        n_within, n = n_within + within(of_pixels, LEVELS), n + len(of_pixels)
        spreads += spreads_of(draws[i], truth[i], uncertain)
    grouped = (torch.cat(part) for part in zip(*spreads, strict=True)) if spreads else [torch.zeros(0)] * 3
    return {
        "tarp": listed(cumulative(tarp_of_draws(draws, truth, restored.random()), LEVELS)),
        "coverage": listed(n_within / max(n, 1)),
        **reliability(*grouped),
    }


def spreads_of(draws: Tensor, truth: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of chosen pixels (C, H, W) of one image the variance over half of its draws (S, C, H, W), by which they are
    grouped, and what the other half predicts and how far its mean is off, squared; of both ways round.

    Grouped by the very draws that predict, pixels whose draws happen to agree would seem too sure of themselves. None
    where there are too few draws for two halves.
    """
    if len(draws) < FEWEST_DRAWS:
        return
    halves, true = decode(draws).chunk(2), decode(truth)
    for grouping, judged in (halves, halves[::-1]):
        predicted, actual = spread_and_error(judged[None], true[None])
        # Of a hundred large images all pixels are kept, to be sorted: in single precision.
        yield grouping.var(dim=0)[chosen], predicted[0, chosen].float(), actual[0, chosen].float()


def curves_of_components(values: Tensor) -> dict[str, Any]:
    """Of each principal direction the predicted deviation and the actual one, over all images.

    values: (n, 2, K), predicted variances and squared errors.
    """
    predicted, actual = values.mean(0).sqrt()
    return {"predicted": listed(predicted), "actual": listed(actual)}


def reliability(by: Tensor, predicted: Tensor, actual: Tensor) -> dict[str, list[float]]:
    """Root mean predicted variance and root mean squared error of pixels (P,) grouped by another variance of theirs."""
    if len(predicted) < N_GROUPS:
        return {"predicted": [], "actual": []}
    groups = by.argsort().tensor_split(N_GROUPS)
    means = torch.tensor([[float(v[g].mean()) for g in groups] for v in (predicted, actual)]).sqrt()
    return {"predicted": listed(means[0]), "actual": listed(means[1])}
