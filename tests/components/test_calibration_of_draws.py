"""Draws of a known law are calibrated; sharper ones are not; what is certain does not count."""

import pytest
import torch
from torch import Tensor

from components.evaluation.calibration import LEVELS, judge_components, judge_draws, reliability
from invfusion.codec import encode
from invfusion.metrics import uniformity_gap
from invfusion.rng import generator

N, S, SHAPE = 300, 4, (1, 4, 4)


def case(spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """8-bit draws and truths around means, with another spread of the draws; the first row of pixels is known."""
    way = generator(0, "draws")
    mean, unknown = 0.3 * torch.randn(N, *SHAPE, generator=way), torch.ones(SHAPE)
    unknown[:, 0] = 0
    truth = mean + 0.2 * unknown * torch.randn(N, *SHAPE, generator=way)
    draws = mean[:, None] + 0.2 * spread * unknown * torch.randn(N, S, *SHAPE, generator=way)
    return encode(draws), encode(truth)


def test_draws_of_the_right_law_are_calibrated() -> None:
    values, curves = judge_draws(*case(), seed=0, degradation="x")
    assert uniformity_gap(values["tarp_ranks"]) < 1.5 / N**0.5
    assert float(values["coverage_90"].mean()) == pytest.approx(0.9, abs=0.02)
    assert float((values["predicted"].sum() / values["actual"].sum()).sqrt()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(torch.tensor(curves["coverage"]).double(), LEVELS, atol=0.03, rtol=0)


def test_draws_that_are_too_sure_are_seen() -> None:
    values, curves = judge_draws(*case(spread=0.4), seed=0, degradation="x")
    assert uniformity_gap(values["tarp_ranks"]) > 0.2
    assert float(values["coverage_90"].mean()) < 0.87
    assert all(a > 1.2 * p for p, a in zip(curves["predicted"], curves["actual"], strict=True))


def test_pixels_without_anything_at_stake_are_left_out() -> None:
    draws, truth = case()
    values, curves = judge_draws(draws[:, :, :, :1], truth[:, :, :1], seed=0, degradation="x")
    assert float(values["coverage_90"].sum()) == 0
    assert curves["predicted"] == []


def test_reliability_groups_by_prediction() -> None:
    predicted = torch.linspace(0.01, 1, 1200).double()
    found = reliability(predicted, 4 * predicted)
    torch.testing.assert_close(torch.tensor(found["actual"]), 2 * torch.tensor(found["predicted"]), rtol=1e-4, atol=0)
    assert found["predicted"] == sorted(found["predicted"])


def test_components_are_averaged_over_images() -> None:
    values = {"nppc_predicted": torch.tensor([[4.0, 1.0], [4.0, 1.0]]), "nppc_actual": torch.tensor([[1.0, 0], [7, 2]])}
    assert judge_components(values) == {"predicted": [2.0, 1.0], "actual": [2.0, 1.0]}
