"""What every registered metric promises: its name, its direction, and that it reads no more than it declares."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from invfusion.codec import encode
from invfusion.errors import ConfigError, ShapeError, WeightsUnavailableError
from invfusion.metrics import METRICS, Metric, Need, Networks, Restorations
from invfusion.rng import generator

N, S, K, SHAPE = 40, 4, 2, (3, 8, 8)
FOLDER = Path(importlib.import_module("invfusion.metrics").__path__[0])
# What each need gives a metric.
GIVES = {"residual": ("residual", "n_measured"), "forecast": ("draws",), "components": ("mean", "components", "stds")}
WITHOUT_WEIGHTS = [metric for metric in METRICS.values() if metric.loader is None]


def restorations(quality: float) -> Restorations:
    """Posteriors N(mean, 0.2^2): the truth is a draw of them, and the restorations are off by (1 - quality)."""
    way = generator(0, "restorations")
    mean = 0.3 * torch.randn(N, *SHAPE, generator=way)
    direction = torch.nn.functional.normalize(torch.randn(N, 1, *SHAPE, generator=way).flatten(2), dim=2)
    directions = torch.cat([direction, direction.roll(1, 2)], 1).view(N, K, *SHAPE)
    error = 0.2 * torch.randn(N, *SHAPE, generator=way)
    off = 1 - quality
    draws = mean[:, None] + 0.2 * (1 - 0.8 * off) * torch.randn(N, S, *SHAPE, generator=way) + off
    along = (directions * error[:, None]).flatten(2).sum(2)
    # Of a good model the error lies along the directions; of a bad one it does not, and is overestimated.
    inside = (along[:, :, None, None, None] * directions).sum(1)
    truth = mean + error
    return Restorations(
        images=encode(draws[:, 0]),
        truth=encode(truth),
        residual=torch.full((N,), 0.01 + off).double(),
        n_measured=torch.full((N,), 10),
        projected=encode(draws[:, 0]),
        draws=encode(draws),
        mean=truth - inside - off * error,
        components=directions,
        stds=along.abs() * (1 + 3 * off),
        random=lambda: generator(0, "ties"),
    )


def number(metric: Metric, restored: Restorations) -> float:
    reference = metric.reference(restored.need("truth"), Networks()) if metric.reference else None
    values = metric.capped(metric.values(restored), SHAPE)
    return metric.number(values, reference)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda m: m.name)
class TestEveryMetric:
    def test_it_is_one_object_in_a_file_of_its_name(self, metric: Metric) -> None:
        module = importlib.import_module(f"invfusion.metrics.{metric.name}")
        assert [value for value in vars(module).values() if isinstance(value, Metric)] == [metric]
        assert module.__doc__

    def test_it_says_what_it_is(self, metric: Metric) -> None:
        assert METRICS[metric.name] is metric
        assert metric.label
        assert metric.better in ("higher", "lower") or isinstance(metric.better, float)
        assert metric.needs <= set(get_args(Need))
        assert metric.stand_in is None or METRICS[metric.stand_in].loader is None
        assert bool(metric.weights) == (metric.loader is not None)

    def test_of_two_values_the_better_has_more_merit(self, metric: Metric) -> None:
        best = {"higher": 2.0, "lower": 1.0}.get(metric.better, metric.better)
        others = [best + 0.5, best - 0.5] if isinstance(metric.better, float) else [3.0 - best]
        assert all(metric.merit(best) > metric.merit(other) for other in others)
        assert metric.arrow[0] == {"higher": "↑", "lower": "↓"}.get(metric.better, "→")


@pytest.mark.parametrize("metric", WITHOUT_WEIGHTS, ids=lambda m: m.name)
class TestComputed:
    def test_it_needs_what_it_declares_and_no_more(self, metric: Metric) -> None:
        whole = restorations(1.0)
        declared = {name for need in metric.needs for name in GIVES.get(need, (need,))} | {
            "images",
            "networks",
            "random",
        }
        fields = {field.name for field in dataclasses.fields(Restorations)}
        part = dataclasses.replace(whole, **dict.fromkeys(fields - declared))
        assert torch.equal(metric.values(part), metric.values(whole))
        # Whether images follow a distribution does not show in them.
        if metric.needs - {"samples"} and metric.reference is None:
            with pytest.raises(ShapeError, match="the metric needs"):
                metric.values(Restorations(images=whole.images))

    def test_values_have_one_row_per_image(self, metric: Metric) -> None:
        values = metric.values(restorations(0.5))
        assert len(values) == N
        assert values.isfinite().all()
        assert (values.ndim == 1) or metric.statistic is not None

    def test_a_good_restoration_has_more_merit_than_a_bad_one(self, metric: Metric) -> None:
        good, bad = number(metric, restorations(0.95)), number(metric, restorations(0.4))
        assert metric.merit(good) > metric.merit(bad), (good, bad)

    def test_how_often_an_image_counts(self, metric: Metric) -> None:
        restored = restorations(0.8)
        values = metric.values(restored)
        reference = metric.reference(restored.need("truth"), Networks()) if metric.reference else None
        weights = torch.arange(N).double() % 3
        if metric.name != "kd_pixel8x8":  # which leaves out pairs of an image with itself
            expected = metric.number(values.repeat_interleave(weights.long(), dim=0), reference)
            assert float(metric.weighted(values, reference)(weights[None], None)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", [m for m in METRICS.values() if m.loader], ids=lambda m: m.name)
def test_missing_weights_are_named(metric: Metric, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=metric.weights):
        Networks(tmp_path, 64).load(metric.loader)


def test_every_file_is_registered() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}
    assert files == set(METRICS)


def test_an_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'energy_scor': did you mean 'energy_score'\?"):
        METRICS["energy_scor"]


def test_the_documentation_lists_every_metric() -> None:
    text = (FOLDER.parents[1] / "docs/metrics.md").read_text()
    for metric in METRICS.values():
        (row,) = [line for line in text.splitlines() if line.startswith("|") and f"`{metric.name}`" in line]
        assert metric.label in row
        assert f"| {metric.arrow} |" in row


def test_the_example_of_the_documentation_is_a_metric() -> None:
    names: dict[str, Any] = {}
    exec((FOLDER.parents[1] / "docs/metrics.md").read_text().split("```")[1].removeprefix("python"), names)
    mae = names["MAE"]
    assert mae.merit(number(mae, restorations(0.95))) > mae.merit(number(mae, restorations(0.4)))
