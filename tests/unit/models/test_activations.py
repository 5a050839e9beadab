"""What a training step keeps, counted from shapes, is what it keeps; layers computed again change memory alone."""

import logging
import math
from typing import Any

import pytest
import torch
from model_helpers import TINY, normal, shaken

from invfusion.models import PRESETS, Denoiser, DenoiserConfig, build_denoiser, keep_within, kept_by_shapes, recompute
from invfusion.models.activations import GIB, TRAINING_BYTES, kept_bytes, layers_of
from invfusion.operators import Measurement, StridedConvolution
from invfusion.training.step import seeded_dropout

SIZE = 16
CONFIG = TINY.model_copy(update={"image_size": SIZE})


def measured(n: int) -> Measurement:
    operator = StridedConvolution((3, SIZE, SIZE), normal(n, SIZE, SIZE), stride=2).prepare()
    return Measurement.of(normal(n, 3, SIZE, SIZE), operator)


def kept_in_a_call(denoiser: Denoiser, n: int) -> int:
    arguments = inputs(denoiser.config, n)
    return kept_bytes(denoiser.net, lambda: denoiser.net(*arguments))


def inputs(config: DenoiserConfig, n: int) -> tuple[Any, ...]:
    return normal(n, config.in_channels, SIZE, SIZE), normal(n, name="noise"), measured(n), None, None


@pytest.mark.parametrize("variant", ["invfusion", "palette", "unconditional"])
def test_shapes_tell_what_a_call_keeps(variant: str) -> None:
    config = CONFIG.model_copy(update={"variant": variant})
    kept, denoiser = kept_by_shapes(config), shaken(config).train()
    assert set(kept.layers) == set(layers_of(denoiser.net))
    for n in (1, 3):
        assert kept.of(n) == kept_in_a_call(denoiser, n)


def test_layers_that_are_computed_again_keep_their_inputs_alone() -> None:
    kept, denoiser = kept_by_shapes(CONFIG), shaken(CONFIG).train()
    for n_recomputed in range(len(kept.order) + 1):
        recompute(denoiser, kept.order[:n_recomputed])
        at_once = max((kept.layers[name] for name in kept.order[:n_recomputed]), default=0)
        of_an_image = kept.of(3, n_recomputed) - kept.of(2, n_recomputed) - at_once
        found = kept_in_a_call(denoiser, 3) - kept_in_a_call(denoiser, 2)
        # Spectra that all layers share are held by the measurement where none keeps them.
        assert of_an_image == (found if n_recomputed < len(kept.order) else pytest.approx(found, rel=0.02))


def test_the_finest_layers_come_first() -> None:
    kept = kept_by_shapes(CONFIG)
    assert all(name.startswith(("down.0", "up.0")) for name in kept.order[:2])
    assert kept.order[-1].startswith("middle")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fewest_layers_are_computed_again(dtype: torch.dtype) -> None:
    kept = kept_by_shapes(CONFIG, dtype)
    budget = 0.8 * kept.of(4)
    n = kept.fewest(4, budget)
    assert 0 < n < len(kept.layers)
    assert kept.of(4, n) <= budget < kept.of(4, n - 1)
    assert kept.fewest(4, kept.of(4)) == 0
    assert kept.fewest(4, 0) == len(kept.layers)
    assert (kept.share(0), kept.share(len(kept.layers))) == (0, 1)


def test_low_precision_keeps_less() -> None:
    assert kept_by_shapes(CONFIG, torch.bfloat16).image < 0.8 * kept_by_shapes(CONFIG).image


def test_nothing_of_a_count_stays() -> None:
    """Tables that are made once must not be without contents afterwards."""
    kept_by_shapes.cache_clear()
    kept_by_shapes(CONFIG)
    assert torch.isfinite(build_denoiser(CONFIG)(torch.zeros(1, 3, SIZE, SIZE), torch.ones(1), measured(1))).all()


@pytest.mark.parametrize("changes", [{"image_size": 9, "patch_size": 3, "levels": TINY.levels[:1]}, {"image_size": 72}])
def test_shapes_of_any_grid_are_counted(changes: dict[str, Any]) -> None:
    """An odd side; and so many tokens that attention goes by tiles."""
    assert kept_by_shapes(DenoiserConfig.model_validate({**dict(CONFIG), **changes})).image > 0


def test_each_of_several_calls_keeps_its_own_casts() -> None:
    kept, denoiser, arguments = kept_by_shapes(CONFIG, torch.bfloat16), shaken(CONFIG).train(), inputs(CONFIG, 2)

    def calls(n: int) -> int:
        def run() -> None:
            for _ in range(n):
                with torch.autocast("cpu", torch.bfloat16):
                    denoiser.net(*arguments)

        return kept_bytes(denoiser.net, run)

    assert kept.fixed > 0
    assert calls(3) - calls(2) == pytest.approx(kept.of(2, n_calls=3) - kept.of(2, n_calls=2), rel=0.02)


@pytest.mark.parametrize("is_measured", [True, False])
@pytest.mark.parametrize("n_recomputed", [1, 99])
def test_no_bit_changes_even_with_dropout(n_recomputed: int, is_measured: bool) -> None:
    config = CONFIG.model_copy(update={"dropout": 0.3})
    denoiser, x, seen = shaken(config).train(), normal(2, 3, SIZE, SIZE), measured(2) if is_measured else None
    order, results, kept = kept_by_shapes(config).order, [], []
    for n in (0, n_recomputed):
        recompute(denoiser, order[:n])
        denoiser.zero_grad()
        with seeded_dropout(5, torch.device("cpu")):
            out = denoiser(x, torch.tensor([0.3, 4.0]), seen)
            (out * normal(*out.shape, name="g")).sum().backward()
        kept.append(kept_in_a_call(denoiser, 2))
        results.append((out.detach(), [p.grad for p in denoiser.parameters() if p.grad is not None]))
    assert kept[1] < kept[0]
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_budget_chooses_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    denoiser, kept = shaken(CONFIG), kept_by_shapes(CONFIG)

    def chosen(budget: float) -> int:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            keep_within(denoiser, 4, budget)
        return sum(layer.recomputes for layer in layers_of(denoiser.net).values())

    assert chosen(0.8 * kept.of(4)) == kept.fewest(4, 0.8 * kept.of(4))
    assert "are computed again" in caplog.text
    assert caplog.records[0].levelno == logging.INFO
    assert chosen(0.0) == len(kept.layers)
    assert caplog.records[0].levelno == logging.WARNING
    assert "where there is room for 0.0" in caplog.text
    assert chosen(math.inf) == 0, "whatever was chosen before"
    assert not caplog.records
    assert chosen(kept.of(4)) == 0
    assert not caplog.records


@pytest.mark.parametrize(("dtype", "n_images", "held"), [(torch.bfloat16, 128, 48.27), (torch.float32, 64, 36.67)])
def test_the_published_network_keeps_what_a_card_held(dtype: torch.dtype, n_images: int, held: float) -> None:
    """Eager training steps of FFHQ64 on an H200, peaks in GiB (benchmarks/results/cuda.json)."""
    config = PRESETS["ffhq64"]
    with torch.device("meta"):
        weights = TRAINING_BYTES * sum(p.numel() for p in build_denoiser(config).parameters())
    counted = (weights + kept_by_shapes(config, dtype).of(n_images)) / GIB
    assert held < counted < 1.06 * held


def test_compiled_layers_keep_less_and_inputs_as_much() -> None:
    eager = kept_by_shapes(CONFIG)
    compiled, n = eager.by_compiled_layers(), len(eager.layers)
    assert compiled.of(4) == pytest.approx(eager.of(4) - 0.3 * 4 * sum(eager.layers.values()), rel=1e-6)
    one_layer = 0.3 * 4 * max(eager.layers.values())
    assert compiled.of(4, n) == pytest.approx(eager.of(4, n) - one_layer, rel=1e-6)
    denoiser, budget = shaken(CONFIG), compiled.of(4)
    for by_layers, expected in ((True, 0), (False, eager.fewest(4, budget))):
        keep_within(denoiser, 4, budget, compiled=by_layers)
        assert sum(layer.recomputes for layer in layers_of(denoiser.net).values()) == expected
