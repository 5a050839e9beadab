"""Whether the uncertainty of posterior samples can be trusted, where the truth is known: held-out images.

Judged on 8-bit images, as people get them. A pixel counts only where something is at stake: where a sample differs from
the truth by more than two grey levels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from components.records import tidy
from invfusion.codec import decode
from invfusion.metrics import coverage, cumulative, ranks, spread_and_error, tarp_ranks
from invfusion.rng import generator

LEVELS = torch.linspace(0, 1, 41, dtype=torch.float64)
LEVEL = 0.9
AT_STAKE = 2.5 / 127.5
# Pixels are grouped by predicted deviation into so many groups of one size.
N_GROUPS = 12


def judge_draws(draws: Tensor, truth: Tensor, seed: int, degradation: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Draws (n, S, C, H, W) and truth (n, C, H, W), uint8 -> values of each image, and curves over LEVELS.

    values: tarp_ranks, coverage_90 (share of pixels within their central 90% interval), and the sums over pixels of the
    predicted variance and the squared error. TARP's reference for an image is the truth of the next one.
    """
    samples, x = decode(draws), decode(truth)
    # The same draws for all methods, so that they can be compared.
    way = generator(seed, "evaluate/calibration", degradation)
    of_distance = tarp_ranks(samples, x, x.roll(1, 0), way)
    of_pixels = ranks(samples, x, way)
    at_stake = (samples - x[:, None]).abs().amax(1) > AT_STAKE
    predicted, actual = spread_and_error(samples, x)
    inside = ((of_pixels - 0.5).abs() <= LEVEL / 2) & at_stake
    values = {
        "tarp_ranks": of_distance,
        "coverage_90": inside.flatten(1).sum(1) / at_stake.flatten(1).sum(1).clamp(min=1),
        "predicted": predicted.flatten(1).sum(1),
        "actual": actual.flatten(1).sum(1),
    }
    curves = {
        "tarp": _listed(cumulative(of_distance, LEVELS)),
        "coverage": _listed(coverage(of_pixels[at_stake], LEVELS)),
        **reliability(predicted[at_stake], actual[at_stake]),
    }
    return values, curves


def judge_components(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """For each principal component of NPPC, the deviation that it predicts and the actual one, over all images."""
    predicted, actual = values["nppc_predicted"], values["nppc_actual"]
    return {"predicted": _listed(predicted.mean(0).sqrt()), "actual": _listed(actual.mean(0).sqrt())}


def reliability(predicted: Tensor, actual: Tensor) -> dict[str, list[float]]:
    """Root mean predicted variance and root mean squared error of pixels (P,) grouped by their predicted variance."""
    if len(predicted) < N_GROUPS:
        return {"predicted": [], "actual": []}
    groups = predicted.argsort().tensor_split(N_GROUPS)
    means = torch.tensor([[float(v[g].mean()) for g in groups] for v in (predicted, actual)]).sqrt()
    return {"predicted": _listed(means[0]), "actual": _listed(means[1])}


def _listed(values: Tensor) -> list[float]:
    return [tidy(value) for value in values.tolist()]
