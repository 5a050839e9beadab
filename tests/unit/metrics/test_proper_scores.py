"""Energy score and CRPS against their closed forms, and that they are proper: the true law scores best."""

import math

import pytest
import torch

from invfusion.metrics import crps, energy_score
from invfusion.rng import generator

N, D = 4000, 6


def case(n_draws: int, spread: float = 1.0, bias: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Truths (N, D) of the standard normal law, and draws (N, S, D) of another."""
    way = generator(0, "proper scores")
    truth = torch.randn(N, D, generator=way, dtype=torch.float64)
    return bias + spread * torch.randn(N, n_draws, D, generator=way, dtype=torch.float64), truth


def mean_norm(d: int) -> float:
    """The expected length of a standard normal vector of d entries."""
    return math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))


@pytest.mark.parametrize("n_draws", [2, 3, 8])
@pytest.mark.parametrize("spread", [0.5, 1.0, 1.5])
def test_gaussian_closed_form_for_any_number_of_draws(n_draws: int, spread: float) -> None:
    """X - x is N(0, 1 + s^2) and X - X' is N(0, 2 s^2)."""
    draws, truth = case(n_draws, spread)
    lengths = math.sqrt(1 + spread**2) - math.sqrt(2) * spread / 2
    score = float(energy_score(draws, truth).mean())
    assert score == pytest.approx(mean_norm(D) / math.sqrt(D) * lengths, abs=0.015)
    assert float(crps(draws, truth).mean()) == pytest.approx(mean_norm(1) * lengths, abs=0.015)


@pytest.mark.parametrize("score", [energy_score, crps])
def test_the_law_of_the_truth_scores_best(score) -> None:
    best = float(score(*case(4)).mean())
    for other in ({"spread": 0.6}, {"spread": 1.6}, {"bias": 0.5}):
        assert float(score(*case(4, **other)).mean()) > best + 0.01, other


def test_sums_over_all_pairs() -> None:
    """Against the double sums of the definitions."""
    draws, truth = case(5)
    draws, truth = draws[:3], truth[:3]
    pairs = draws[:, :, None] - draws[:, None]
    energy = (draws - truth[:, None]).norm(dim=-1).mean(1) - pairs.norm(dim=-1).sum((1, 2)) / (2 * 5 * 4)
    torch.testing.assert_close(energy_score(draws, truth), energy / math.sqrt(D))
    by_entry = (draws - truth[:, None]).abs().mean(1) - pairs.abs().sum((1, 2)) / (2 * 5 * 4)
    torch.testing.assert_close(crps(draws, truth), by_entry.mean(1))


def test_a_point_estimate_has_no_spread() -> None:
    _, truth = case(1)
    estimate = torch.zeros(N, 1, D)
    torch.testing.assert_close(energy_score(estimate, truth), truth.square().mean(1).sqrt())
    torch.testing.assert_close(crps(estimate, truth), truth.abs().mean(1))
    assert float(energy_score(*case(4)).mean()) < float(energy_score(estimate, truth).mean())
