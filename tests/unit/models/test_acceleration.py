"""Compilation and low precision change speed and memory, and values by rounding at most."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from model_helpers import TINY, mask_operator, normal, shaken
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.models import (
    Denoiser,
    compile_denoiser,
    compile_layers,
    compile_network,
    compiles,
    lower_precision,
)
from invfusion.models.acceleration import PAYS_FROM, is_compiled
from invfusion.models.attention import mark_constants
from invfusion.models.hdit import Layer
from invfusion.operators.base import Measurement
from invfusion.operators.masks import MaskOperator
from invfusion.rng import generator

pytestmark = pytest.mark.slow

X = normal(2, 3, 8, 8)
SIGMA = torch.tensor([0.3, 4.0])
# Smaller strides and matrices than the defaults, which 8x8 images with 2 samples do not need.
SETTINGS = {"strided_motion_blur": {"strides": (2,)}, "matrix": {"max_rows": 16}}
# One family for each kind of operator, and nothing measured.
KINDS = ["strided_motion_blur", "patch_inpainting", "matrix", "null", None]
# Of the tiny network compiled layer by layer: two for each of its two shapes of layers, the operator's part between.
GRAPHS = 4


def draw(kind: str | None, seed: int = 0) -> Measurement | None:
    if kind is None:
        return None
    family = FAMILIES[kind](**SETTINGS.get(kind, {}))
    return Measurement.of(X, family.sample(2, (3, 8, 8), generator(seed, "operator")).prepare())


def outputs(denoiser: Denoiser, measurement: Measurement | None) -> tuple[Tensor, list[Tensor]]:
    """Images and the gradients of all parameters that have one."""
    denoiser.zero_grad()
    out = denoiser(X, SIGMA, measurement)
    (out * normal(*out.shape, name="g")).sum().backward()
    return out.detach(), [p.grad for p in denoiser.parameters() if p.grad is not None]


def test_the_compiler_is_not_loaded_where_nothing_is_compiled() -> None:
    code = """
import sys, torch
from invfusion.models import DenoiserConfig, build_denoiser
config = DenoiserConfig.model_validate_json(sys.argv[1])
build_denoiser(config, seed=0, variant="invfusion")(torch.zeros(1, 3, 8, 8), torch.ones(1), None)
assert "torch._dynamo" not in sys.modules, "loading it takes as long as all of the library"
"""
    subprocess.run([sys.executable, "-c", code, TINY.model_dump_json()], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_breaks_and_no_recompilation(kind: str | None) -> None:
    torch._dynamo.reset()
    mark_constants()
    denoiser = shaken()
    compiled = torch.compile(denoiser.forward, fullgraph=True, backend="eager", dynamic=False)
    for seed in range(2):
        measurement = draw(kind, seed)
        if measurement is not None:
            _ = measurement.image
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            assert torch.equal(compiled(X, SIGMA, measurement), denoiser(X, SIGMA, measurement))


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("strided_motion_blur", "invfusion"), ("patch_inpainting", "palette")],
)
def test_compiled_equals_eager_in_values_and_gradients(kind: str, variant: str) -> None:
    torch._dynamo.reset()
    denoiser, measurement = shaken(variant=variant).train(), draw(kind)
    plain = outputs(denoiser, measurement)
    compile_network(denoiser, backend="aot_eager", fullgraph=True)
    out, grads = outputs(denoiser, measurement)
    torch.testing.assert_close(out, plain[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "sigma_y"),
    [("strided_motion_blur", 0.0), ("strided_motion_blur", 0.3), ("patch_inpainting", 0.3), ("matrix", 0.3)],
)
def test_a_network_that_knows_the_noise_level_is_compiled_too(kind: str, sigma_y: float) -> None:
    """A measurement that nobody has asked yet whether it is noisy."""
    torch._dynamo.reset()
    denoiser, made = shaken(sees_sigma_y=True).train(), draw(kind)
    assert made is not None
    plain = outputs(denoiser, Measurement(made.y, made.operator, sigma_y))
    compile_network(denoiser, backend="aot_eager", fullgraph=True)
    out, grads = outputs(denoiser, Measurement(made.y, made.operator, sigma_y))
    torch.testing.assert_close(out, plain[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class Asking(MaskOperator):
    """As a user may write one: its map asks for a value."""

    def _forward(self, x: Tensor) -> Tensor:
        return super()._forward(x) if bool(x.isfinite().all()) else x


def test_an_operator_that_asks_for_values_runs_between_graphs() -> None:
    torch._dynamo.reset()
    denoiser, mask = shaken(), mask_operator(2).mask
    measurement = Measurement.of(X, Asking((3, 8, 8), mask))
    with torch.no_grad():
        plain = denoiser(X, SIGMA, measurement)
        compile_network(denoiser, backend="eager")
        assert torch.equal(denoiser(X, SIGMA, measurement), plain)


def test_every_operator_takes_the_graphs_of_compiled_layers() -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    eager, denoiser = shaken(), shaken()
    compile_layers(denoiser, backend=count)
    n_graphs = []
    with torch.no_grad():
        for kind in ("strided_motion_blur", "patch_inpainting"):
            measurement = draw(kind)
            assert torch.equal(denoiser(X, SIGMA, measurement), eager(X, SIGMA, measurement))
            n_graphs.append(len(graphs))
    assert n_graphs == [GRAPHS, GRAPHS]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_networks_are_compiled_where_that_pays_and_where_it_can(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device, least = torch.device(kind), PAYS_FROM[kind]
    monkeypatch.setattr("invfusion.models.acceleration.missing_compiler", lambda _: None)
    wanted = [compiles("auto", device, least - 1), compiles("auto", device, least), compiles(True, device, 1)]
    assert wanted == [False, True, True]
    assert not compiles(False, device, 10 * least)
    monkeypatch.setattr("invfusion.models.acceleration.missing_compiler", lambda _: "no compiler")
    assert not compiles("auto", device, least)
    assert not caplog.text
    assert not compiles(True, device, least)
    assert "run eager, since they cannot be compiled: no compiler" in caplog.text


def test_a_gpu_compiles_layers_and_a_cpu_the_network() -> None:
    by_layer, whole = shaken(), shaken()
    compile_denoiser(by_layer, torch.device("cuda"))
    compile_denoiser(whole, torch.device("cpu"))
    layers = [module for module in by_layer.modules() if isinstance(module, Layer)]
    assert layers
    assert all(layer._compiled_call_impl is not None for layer in layers)
    assert by_layer.net._compiled_call_impl is None
    assert whole.net._compiled_call_impl is not None
    assert [is_compiled(d) for d in (by_layer, whole, shaken())] == [True, True, False]


def test_compilation_keeps_names_and_copies_are_eager() -> None:
    denoiser = shaken()
    names = list(denoiser.state_dict())
    compile_network(denoiser)
    assert list(denoiser.state_dict()) == names
    assert denoiser.net._compiled_call_impl is not None
    assert copy.deepcopy(denoiser).net._compiled_call_impl is None


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_stays_within_its_bounds(kind: str | None) -> None:
    """The bound of docs/performance.md on the network's part of the estimate, in the root mean square."""
    denoiser, measurement = shaken(), draw(kind)
    with torch.no_grad():
        exact = denoiser(X, SIGMA, measurement)
        part = exact - 0.25 / (SIGMA.square() + 0.25).view(-1, 1, 1, 1) * X
        lower_precision(denoiser)
        rough = denoiser(X, SIGMA, measurement)
    assert rough.dtype == torch.float32
    error = (rough - exact).square().mean(dim=(1, 2, 3)).sqrt() / part.square().mean(dim=(1, 2, 3)).sqrt()
    assert 0 < error.max() < 0.08


def test_low_precision_halves_the_trunk_and_spares_the_conditioning() -> None:
    denoiser = shaken()
    before = sum(p.nbytes for p in denoiser.net.parameters())
    lower_precision(denoiser)
    assert denoiser.net.conditioning.time_proj.weight.dtype == torch.float32
    assert sum(p.nbytes for p in denoiser.net.parameters()) < 0.6 * before
