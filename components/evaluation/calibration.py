"""Whether the uncertainty of posterior samples can be trusted, where the truth is known: curves for held-out images.

Judged on 8-bit images, as people get them, and where something is at stake (`invfusion.metrics.tools.calibration`).
"""

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


def curves_of_draws(restored: Restorations) -> dict[str, Any]:
    """TARP's curve and the coverage of central intervals over LEVELS, and how reliable the predicted deviation is."""
    draws, truth = restored.need("draws"), restored.need("truth")
    n_within, n = torch.zeros(len(LEVELS), dtype=torch.long), 0
    spreads: list[tuple[Tensor, Tensor]] = []
    for i, (uncertain, of_pixels) in enumerate(ranks_at_stake(draws, truth, restored.random())):
        n_within, n = n_within + within(of_pixels, LEVELS), n + len(of_pixels)
        predicted, actual = spread_and_error(decode(draws[i : i + 1]), decode(truth[i : i + 1]))
        # Of a hundred large images all pixels are kept, to be sorted: in single precision.
        spreads.append((predicted[0, uncertain].float(), actual[0, uncertain].float()))
    return {
        "tarp": listed(cumulative(tarp_of_draws(draws, truth, restored.random()), LEVELS)),
        "coverage": listed(n_within / max(n, 1)),
        **reliability(*(torch.cat(part) for part in zip(*spreads, strict=True))),
    }


def curves_of_components(values: Tensor) -> dict[str, Any]:
    """Of each principal direction the predicted deviation and the actual one, over all images.

    values: (n, 2, K), predicted variances and squared errors.
    """
    predicted, actual = values.mean(0).sqrt()
    return {"predicted": listed(predicted), "actual": listed(actual)}


def reliability(predicted: Tensor, actual: Tensor) -> dict[str, list[float]]:
    """Root mean predicted variance and root mean squared error of pixels (P,) grouped by their predicted variance."""
    if len(predicted) < N_GROUPS:
        return {"predicted": [], "actual": []}
    groups = predicted.argsort().tensor_split(N_GROUPS)
    means = torch.tensor([[float(v[g].mean()) for g in groups] for v in (predicted, actual)]).sqrt()
    return {"predicted": listed(means[0]), "actual": listed(means[1])}
