import pytest
import torch

from invfusion.errors import ShapeError
from invfusion.metrics import mean_interval, statistic_interval
from invfusion.metrics.tools import bootstrap
from invfusion.metrics.tools.bootstrap import interval_of, laid_around
from invfusion.rng import generator


def test_interval_of_a_mean_is_the_classic_one() -> None:
    values = torch.randn(400, generator=generator(0, "values")) + 5
    low, high = mean_interval(values, 2000, generator(0, "bootstrap"))
    half = 1.96 * float(values.std()) / 20
    assert low == pytest.approx(float(values.mean()) - half, abs=0.015)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.015)


def test_the_generator_decides() -> None:
    values = torch.arange(20.0)
    a, b, c = (mean_interval(values, 50, generator(0, stream)) for stream in ("a", "a", "c"))
    assert a == b
    assert a != c


@pytest.mark.parametrize("kept", [0, 10**6])
def test_resamples_that_are_kept_are_those_of_the_generator(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "KEPT_NUMBERS", kept)
    values = torch.randn(30, generator=generator(0, "values"), dtype=torch.float64)
    plain = generator(0, "kept")
    means = [float(w @ values) / 30 for w in bootstrap.resamples(30, 40, plain)]
    for _ in range(2):
        draws = generator(0, "kept")
        assert mean_interval(values, 40, draws) == interval_of(torch.tensor(means, dtype=torch.float64))
        assert torch.equal(draws.get_state(), plain.get_state())


def test_interval_of_a_statistic_lies_around_its_value() -> None:
    values = torch.rand(50, generator=generator(0, "values"), dtype=torch.float64)

    def spread(weights: torch.Tensor) -> float:
        mean = weights @ values / weights.sum()
        return float(weights @ (values - mean).square() / weights.sum())

    value = spread(torch.ones(50, dtype=torch.float64))
    low, high = statistic_interval(spread, value, 50, 500, generator(0, "bootstrap"))
    assert low < value < high


def test_the_interval_of_a_distance_ends_at_zero_at_the_latest() -> None:
    values = torch.tensor([0.1, 5.0, 0.2, 7.0, 0.0], dtype=torch.float64)
    low, high = interval_of(laid_around(0.5, values))
    assert low < 0
    low, high = interval_of(laid_around(0.5, values, nonnegative=True))
    assert 0 <= low < 0.5 < high
    zero = laid_around(0.0, torch.zeros(5, dtype=torch.float64), nonnegative=True)
    assert interval_of(zero) == (0, 0)


def test_no_values_no_interval() -> None:
    with pytest.raises(ShapeError, match="one value per image"):
        mean_interval(torch.zeros(0), 10, generator(0, "bootstrap"))
