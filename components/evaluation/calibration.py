"""Whether the uncertainty of posterior samples can be trusted, where the truth is known: curves for held-out images.

Judged on 8-bit images, as people get them, and where something is at stake (`invfusion.metrics.tools.calibration`).
"""

from typing import Any

import torch
from torch import Tensor

from components.records import listed
from invfusion.codec import decode
from invfusion.metrics import Restorations, coverage, cumulative, spread_and_error
from invfusion.metrics.tools.calibration import at_stake, ranks_of_truth

LEVELS = torch.linspace(0, 1, 41, dtype=torch.float64)
# Pixels are grouped by predicted deviation into so many groups of one size.
N_GROUPS = 12


def curves_of_draws(restored: Restorations) -> dict[str, Any]:
    """TARP's curve and the coverage of central intervals over LEVELS, and how reliable the predicted deviation is."""
    draws, truth = restored.need("draws"), restored.need("truth")
    of_distance, of_pixels = ranks_of_truth(draws, truth, restored.random())
    uncertain = at_stake(draws, truth)
    predicted, actual = spread_and_error(decode(draws), decode(truth))
    return {
        "tarp": listed(cumulative(of_distance, LEVELS)),
        "coverage": listed(coverage(of_pixels[uncertain], LEVELS)),
        **reliability(predicted[uncertain], actual[uncertain]),
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
