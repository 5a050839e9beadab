"""The trained filters of `photos`, for noise."""

import pytest
import torch
from torch import Tensor

from invfusion.data.sources.dead_leaves import DeadLeaves
from invfusion.operators import MaskOperator, Measurement
from invfusion.restoration import adaptive
from invfusion.restoration.adaptive import Filters, load_filters
from invfusion.restoration.photos import PhotosPosterior, load_photos
from invfusion.rng import generator, generators, randn


def leaves(size: int = 64, seed: int = 5) -> Tensor:
    """Two images that nothing was learned from."""
    drawn = [DeadLeaves(size=size, seed=seed).draw(number) for number in range(2)]
    return torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in drawn]) / 127.5 - 1


def noisy(x: Tensor, level: float | Tensor) -> PhotosPosterior:
    operator = MaskOperator(tuple(x.shape[1:]), torch.ones(1, 1, *x.shape[2:]))
    noise = randn(tuple(x.shape[1:]), generators(0, "n", range(len(x))))
    return load_photos().law_of(x.shape, Measurement.of(x, operator, level, noise))


@pytest.mark.parametrize(("level", "n_channels"), [(0.07, 3), (0.1, 3), (0.2, 3), (0.1, 1)])
def test_they_know_more_of_edges_than_the_gaussian(level: float, n_channels: int) -> None:
    x = leaves()[:, :n_channels]
    law = noisy(x, level)
    assert (law.mean - x).square().mean() < 0.9 * (law.gaussian_mean - x).square().mean()


def test_draws_lie_around_the_estimate() -> None:
    x = leaves(32)[:1]
    law = noisy(x.expand(40, -1, -1, -1), 0.1)
    draws = law.sample([generator(0, "draw", i) for i in range(40)])
    spread = draws - law.mean
    assert spread.mean().abs() < 0.1 * spread.std()


def test_each_level_has_its_own_filters() -> None:
    x = leaves(32)
    both = noisy(x, torch.tensor([0.05, 0.2])).mean
    for row, level in enumerate((0.05, 0.2)):
        alone = noisy(x, level).mean
        torch.testing.assert_close(both[row], alone[row], atol=2e-3, rtol=0)
    far_below = noisy(x, 0.005)
    assert torch.equal(far_below.mean, far_below.gaussian_mean)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = leaves(40)
    estimate, gap = x.flip(3), 0.1 * x
    whole = load_filters().correction(estimate, gap, 0.1)
    monkeypatch.setattr(adaptive, "STRIP", 7)
    torch.testing.assert_close(load_filters().correction(estimate, gap, 0.1), whole)


def test_learning_finds_what_is_missed() -> None:
    """A blur's inverse within the reach of the filters is learned, for every kind of neighbourhood."""
    x = leaves(96)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    filters = Filters.learned(blurred, torch.zeros_like(x), x)
    other = leaves(96, seed=6)
    estimate = torch.nn.functional.avg_pool2d(other, 3, 1, 1, count_include_pad=False)
    sharper = estimate + filters.correction(estimate, torch.zeros_like(other))
    assert (sharper - other).square().mean() < 0.6 * (estimate - other).square().mean()
