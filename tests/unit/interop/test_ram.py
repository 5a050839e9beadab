"""deepinv's RAM as a sampler: range, noise level and norm are its own, and missing weights are said before any work."""

import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from invfusion.errors import WeightsUnavailableError
from invfusion.operators import Inpainting, LinearOperator, MatrixOperator, Measurement
from invfusion.samplers import SAMPLERS, Sampler

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepinv") is None, reason="deepinv is not installed")
SHAPE = (3, 16, 12)


@pytest.fixture
def plugin() -> Iterator[Any]:
    """The plug-in, registered for the time of one test."""
    before = set(SAMPLERS)
    sys.modules.pop("invfusion.interop._ram", None)
    yield importlib.import_module("invfusion.interop._ram")
    for name in set(SAMPLERS) - before:
        del SAMPLERS[name]
    sys.modules.pop("invfusion.interop._ram", None)


def measured(operator: LinearOperator, sigma_y: float = 0.0) -> tuple[Tensor, Measurement]:
    draws = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(2, *SHAPE, generator=draws) - 1
    return x, Measurement.of(x, operator, sigma_y, torch.randn(2, *operator.measurement_shape, generator=draws))


def operators() -> list[LinearOperator]:
    draws = torch.Generator().manual_seed(1)
    rows = torch.randn(2, 20, 3 * 16 * 12, generator=draws) / 5
    return [Inpainting(SHAPE, torch.rand(16, 12, generator=draws) > 0.5), MatrixOperator(SHAPE, rows)]


@pytest.mark.parametrize("operator", operators(), ids=lambda operator: operator.kind)
def test_what_the_network_is_given(plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, operator: Any) -> None:
    _, measurement = measured(operator, sigma_y=0.2)
    x, clean = measured(operator)
    seen: list[tuple[Tensor, Any, Tensor]] = []

    def network(v: Tensor, physics: Any, sigma: Tensor) -> Tensor:
        seen.append((v, physics, sigma))
        return physics.A_dagger(v)

    monkeypatch.setattr(plugin, "_network", lambda *_: network)
    sampler = plugin.RAM(weights=_file(tmp_path))
    restored = sampler.sample(None, clean).x
    norms = operator.norm.expand(2)
    for i, (v, physics, sigma) in enumerate(seen):
        torch.testing.assert_close(v, physics.A((x[i : i + 1] + 1) / 2), rtol=1e-4, atol=1e-5)
        assert float(sigma) == 0
        unit = physics.operator.norm
        torch.testing.assert_close(unit, torch.ones_like(unit), rtol=1e-3, atol=1e-3)
    # What H_pinv makes of y in [0, 1], back in [-1, 1].
    white = operator.H(torch.ones(2, *SHAPE))
    torch.testing.assert_close(restored, operator.H_pinv(clean.y + white) - 1, rtol=1e-3, atol=1e-4)
    seen.clear()
    sampler.sample(None, measurement)
    torch.testing.assert_close(torch.cat([sigma for *_, sigma in seen]), 0.1 / norms, rtol=1e-4, atol=1e-6)


def test_missing_weights_are_one_clear_line(plugin: Any, tmp_path: Path) -> None:
    sampler: Sampler = plugin.RAM(weights=tmp_path / "nowhere.pth.tar")
    with pytest.raises(WeightsUnavailableError, match=r"no file .*nowhere\.pth\.tar: save the weights of mterris/ram"):
        sampler.sample(None, measured(operators()[0])[1])  # type: ignore[arg-type]


def test_other_weights_are_refused(plugin: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match="does not hold RAM's weights"):
        plugin.RAM(weights=_file(tmp_path)).sample(None, measured(operators()[0])[1])


def test_the_real_network_runs_on_our_operators(plugin: Any, tmp_path: Path) -> None:
    """With random weights, since the trained ones are not ours to give."""
    plugin.import_torchvision()
    deepinv = importlib.import_module("deepinv.models")
    torch.save(deepinv.RAM(pretrained=False).state_dict(), tmp_path / "ram.pth.tar")
    output = plugin.RAM(weights=tmp_path / "ram.pth.tar").sample(None, measured(operators()[0], 0.1)[1])
    assert output.x.shape == (2, *SHAPE)
    assert output.nfe == 1
    assert bool(output.x.isfinite().all())


def test_it_is_a_plug_in(plugin: types.ModuleType) -> None:
    assert "ram" in SAMPLERS


def _file(folder: Path) -> Path:
    path = folder / "weights.pt"
    torch.save({"a": torch.ones(1)}, path)
    return path
