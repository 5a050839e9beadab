"""Calibrated samples pass, and each way of being wrong is seen for what it is."""

import pytest
import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.metrics import (
    coverage,
    cumulative,
    projected,
    ranks,
    spread_and_error,
    tarp_ranks,
    uniformity_gap,
)
from invfusion.rng import generator

B, S, SHAPE = 600, 9, (1, 2, 3)


def case(spread: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Posteriors N(m_i, 1) with samples of another spread and mean; and references."""
    draws = generator(0, "calibration")
    mean = torch.randn(B, *SHAPE, generator=draws)
    truth = mean + torch.randn(B, *SHAPE, generator=draws)
    samples = mean[:, None] + shift + spread * torch.randn(B, S, *SHAPE, generator=draws)
    return samples, truth, truth.roll(1, 0)


def tarp_gap(spread: float = 1.0, shift: float = 0.0) -> float:
    return uniformity_gap(tarp_ranks(*case(spread, shift), generator(0, "u")))


def test_ranks_of_calibrated_samples_are_uniform() -> None:
    samples, truth, _ = case()
    levels = torch.tensor([0.1, 0.5, 0.9])
    found = ranks(samples, truth, generator(0, "u"))
    assert found.shape == truth.shape
    torch.testing.assert_close(cumulative(found, levels), levels, atol=0.03, rtol=0)
    torch.testing.assert_close(coverage(found, levels), levels, atol=0.03, rtol=0)
    assert uniformity_gap(found.flatten()) < 0.03


def test_ranks_show_the_kind_of_error() -> None:
    level = torch.tensor([0.9])
    of = lambda spread, shift: ranks(*case(spread, shift)[:2], generator(0, "u"))  # noqa: E731
    assert float(coverage(of(0.6, 0.0), level)) < 0.8
    assert float(coverage(of(1.5, 0.0), level)) > 0.95
    assert float(of(1.0, 0.5).mean()) < 0.4


def test_tarp_passes_what_is_right_and_catches_what_is_wrong() -> None:
    assert tarp_gap() < 1.5 / B**0.5
    assert min(tarp_gap(spread=0.7), tarp_gap(spread=1.4), tarp_gap(shift=1.0)) > 3 / B**0.5


def test_equal_values_get_a_place_by_chance() -> None:
    found = ranks(torch.zeros(4000, 5), torch.zeros(4000), generator(0, "u"))
    assert uniformity_gap(found) < 0.04


def test_gap_of_known_ranks_and_weights() -> None:
    assert uniformity_gap(torch.tensor([0.5])) == pytest.approx(0.5)
    values = torch.tensor([0.25, 0.75])
    assert uniformity_gap(values) == pytest.approx(0.25)
    assert uniformity_gap(values, torch.tensor([2.0, 0.0])) == uniformity_gap(values[:1]) == pytest.approx(0.75)


def test_projections_are_coordinates() -> None:
    x = torch.arange(24.0).view(2, 2, 1, 2, 3)
    directions = torch.eye(6).view(1, 6, 1, 2, 3).expand(2, -1, -1, -1, -1)[:, :2]
    torch.testing.assert_close(projected(x, directions), x.flatten(2)[..., :2].double())
    torch.testing.assert_close(projected(x[:, 0], directions), x[:, 0].flatten(1)[..., :2].double())


@pytest.mark.parametrize(("spread", "expected"), [(1.0, 1.0), (0.5, 0.53)])
def test_predicted_variance_meets_the_squared_error(spread: float, expected: float) -> None:
    predicted, actual = spread_and_error(*case(spread)[:2])
    assert float((predicted.sum() / actual.sum()).sqrt()) == pytest.approx(expected, rel=0.06)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="ranks need"):
        ranks(torch.zeros(2, 3, 4), torch.zeros(2, 5), generator(0, "u"))
    with pytest.raises(ShapeError, match="at least 2 samples"):
        spread_and_error(torch.zeros(2, 1, 4), torch.zeros(2, 4))
