"""Draws of a known law are calibrated; sharper ones are not; what is certain does not count."""

import pytest
import torch

from components.evaluation.calibration import (
    LEVELS,
    N_GROUPS,
    curves_of_components,
    curves_of_draws,
    reliability,
    tallied,
)
from invfusion.codec import encode
from invfusion.metrics import METRICS, Restorations
from invfusion.rng import generator

N, S, SHAPE = 300, 4, (1, 4, 4)


def case(spread: float = 1.0, shown: slice = slice(None), deviation: float = 0.2) -> Restorations:
    """8-bit draws and truths around means, with another spread of the draws; the first row of pixels is known."""
    way = generator(0, "draws")
    mean, unknown = 0.3 * torch.randn(N, *SHAPE, generator=way), torch.ones(SHAPE)
    unknown[:, 0] = 0
    truth = mean + deviation * unknown * torch.randn(N, *SHAPE, generator=way)
    draws = mean[:, None] + deviation * spread * unknown * torch.randn(N, S, *SHAPE, generator=way)
    draws, truth = encode(draws[..., shown, :]), encode(truth[..., shown, :])
    return Restorations(images=draws[:, 0], draws=draws, truth=truth, random=lambda: generator(0, "ties"))


def number(metric: str, restored: Restorations) -> float:
    return METRICS[metric].number(METRICS[metric].values(restored))


def test_draws_of_the_right_law_are_calibrated() -> None:
    restored = case()
    assert number("tarp_gap", restored) < 1.5 / N**0.5
    assert number("coverage_90", restored) == pytest.approx(0.9, abs=0.02)
    assert number("std_ratio", restored) == pytest.approx(1, abs=0.05)
    curves = curves_of_draws(restored)
    torch.testing.assert_close(torch.tensor(curves["coverage"]).double(), LEVELS, atol=0.03, rtol=0)


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_groups_of_pixels_are_as_reliable_as_all(spread: float) -> None:
    """Grouped by the draws that are judged, those that happen to agree would seem too sure."""
    curves = curves_of_draws(case(spread=spread))
    for predicted, actual in zip(curves["predicted"], curves["actual"], strict=True):
        assert predicted / actual == pytest.approx(number("std_ratio", case(spread=spread)), rel=0.2)


def test_two_draws_are_too_few_to_group_by() -> None:
    restored = case()
    two = Restorations(
        images=restored.images, draws=restored.draws[:, :2], truth=restored.truth, random=restored.random
    )
    assert curves_of_draws(two)["predicted"] == []


@pytest.mark.parametrize("grey_levels", [1, 2])
def test_pixels_are_chosen_without_favouring_the_truth(grey_levels: float) -> None:
    """Chosen by the range of the draws alone, those whose draws happen to agree would be missing."""
    assert number("coverage_90", case(deviation=grey_levels / 127.5)) == pytest.approx(0.9, abs=0.02)


def test_draws_that_are_too_sure_are_seen() -> None:
    restored = case(spread=0.4)
    assert number("tarp_gap", restored) > 0.2
    assert number("coverage_90", restored) < 0.87
    curves = curves_of_draws(restored)
    assert all(a > 1.2 * p for p, a in zip(curves["predicted"], curves["actual"], strict=True))


def test_pixels_without_anything_at_stake_are_left_out() -> None:
    restored = case(shown=slice(1))
    assert number("coverage_90", restored) == 0
    assert curves_of_draws(restored)["predicted"] == []


def test_reliability_groups_by_prediction() -> None:
    predicted = torch.linspace(0.01, 1, 1200).double()
    found = reliability(tallied(torch.stack([predicted, torch.ones(1200), predicted, 4 * predicted])))
    torch.testing.assert_close(torch.tensor(found["actual"]), 2 * torch.tensor(found["predicted"]), rtol=1e-4, atol=0)
    assert found["predicted"] == sorted(found["predicted"])
    by_hand = predicted.view(N_GROUPS, -1).mean(1).sqrt()
    torch.testing.assert_close(torch.tensor(found["predicted"]).double(), by_hand)


def test_pixels_of_equal_variance_share_what_they_have() -> None:
    """Whatever the order in which they come, and however many images they come from."""
    by, predicted = torch.tensor([1.0, 3.0]).double().repeat(600), torch.arange(1200).double()
    whole = tallied(torch.stack([by, torch.ones(1200), predicted, predicted]))
    assert whole.shape == (4, 2)
    found = torch.tensor(reliability(whole)["predicted"]).double().square()
    expected = torch.tensor([599.0] * 6 + [600.0] * 6).double()
    torch.testing.assert_close(found, expected)
    part = torch.stack([by, torch.ones(1200), predicted, predicted])[
        :, torch.randperm(1200, generator=generator(0, "o"))
    ]
    again = tallied(torch.cat([tallied(part[:, :500]), part[:, 500:]], 1))
    torch.testing.assert_close(again, whole)


def test_components_are_averaged_over_images() -> None:
    values = torch.tensor([[[4.0, 1.0], [1.0, 0.0]], [[4.0, 1.0], [7.0, 2.0]]])
    assert curves_of_components(values) == {"predicted": [2.0, 1.0], "actual": [2.0, 1.0]}
