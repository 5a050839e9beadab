"""All attention backends compute one softmax over the union of each query's windows in all key sets."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from model_helpers import TINY, normal
from torch import Tensor

import invfusion.models.attention as attention_module
from invfusion.errors import ConfigError
from invfusion.models import available_backends, build_denoiser, set_attention_backend
from invfusion.models.attention import _natten as natten_attention
from invfusion.models.attention import (
    attend,
    choose_backend,
    natten_is_compiled,
    neighbourhood_mask,
    neighbourhood_rule,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# (H, W, kernel): odd and even kernels, borders, non-square grids, a kernel wider than one or both axes.
CASES = [(6, 6, 3), (5, 7, 3), (6, 8, 4), (4, 9, 5), (3, 3, 7), (4, 4, "global")]


def inputs(h: int, w: int, n_sets: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    q = normal(2, h, w, 2, 16, name="q")
    k, v = (normal(2, n_sets, h, w, 2, 16, name=name) for name in "kv")
    return tuple(t.to(device).requires_grad_() for t in (q, k, v))  # type: ignore[return-value]


def window(position: int, n: int, kernel: int) -> range:
    """The kernel's window centred on a position, shifted to stay inside [0, n)."""
    kernel = min(kernel, n)
    start = min(max(position - kernel // 2, 0), n - kernel)
    return range(start, start + kernel)


def reference(q: Tensor, k: Tensor, v: Tensor, kernel: int | str) -> Tensor:
    """Query by query: collect the visible keys of all sets, one softmax, weighted sum."""
    _, h, w, _, _ = q.shape
    size = max(h, w) if kernel == "global" else int(kernel)
    out = torch.empty_like(q)
    for i in range(h):
        for j in range(w):
            rows, columns = list(window(i, h, size)), list(window(j, w, size))
            keys = k[:, :, rows][:, :, :, columns].flatten(1, 3)
            values = v[:, :, rows][:, :, :, columns].flatten(1, 3)
            weights = torch.einsum("bhe,bnhe->bhn", q[:, i, j], keys).softmax(-1)
            out[:, i, j] = torch.einsum("bhn,bnhe->bhe", weights, values)
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["sdpa", "natten", "flex"])
@pytest.mark.parametrize("n_sets", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_backend_equals_the_brute_force_reference(
    case: tuple[int, int, int | str], n_sets: int, backend: str, device: str
) -> None:
    if backend not in available_backends(device):
        pytest.skip(f"{backend} cannot compute values and gradients on {device} here")
    h, w, kernel = case
    results = []
    for attention in (lambda *a: attend(*a, backend=backend), reference):
        tensors = inputs(h, w, n_sets, device)
        out = attention(*tensors, kernel)
        grads = torch.autograd.grad((out * normal(*out.shape, name="g").to(device)).sum(), tensors)
        results.append((out, *grads))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", CASES[:4])
@pytest.mark.parametrize("n_sets", [1, 2])
def test_flex_rule_is_the_mask(case: tuple[int, int, int], n_sets: int) -> None:
    h, w, kernel = case
    sides = (min(kernel, h), min(kernel, w))
    query, key = torch.arange(h * w)[:, None], torch.arange(n_sets * h * w)[None]
    rule = neighbourhood_rule((h, w), sides)(torch.tensor(0), torch.tensor(0), query, key)
    torch.testing.assert_close(rule, neighbourhood_mask((h, w), sides, n_sets, torch.device("cpu")))


@pytest.mark.filterwarnings("ignore:return_lse:FutureWarning")
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("n_sets", [1, 2])
def test_natten_values_on_the_cpu(n_sets: int, kernel: int) -> None:
    """Where natten is installed without its library: its slow path gives values, not gradients."""
    if importlib.util.find_spec("natten") is None:
        pytest.skip("natten is not installed")
    tensors = tuple(t.detach() for t in inputs(6, 8, n_sets))
    out = natten_attention(*tensors, (kernel, kernel))
    torch.testing.assert_close(out, reference(*tensors, kernel), atol=1e-4, rtol=1e-4)


def test_masks_are_made_once() -> None:
    first = neighbourhood_mask((6, 6), (3, 3), 2, torch.device("cpu"))
    assert neighbourhood_mask((6, 6), (3, 3), 2, torch.device("cpu")) is first
    assert first.dtype == torch.bool
    assert first.sum(1).tolist() == [18] * 36


def test_auto_runs_everywhere_and_cpu_takes_sdpa() -> None:
    assert choose_backend("auto", "cpu", 64) == "sdpa"
    assert "sdpa" in available_backends("cuda")


@pytest.mark.parametrize(
    ("compiled", "triton", "n_tokens", "expected"),
    [
        (True, True, 64, "natten"),
        (True, False, 4096, "natten"),
        (False, True, 4096, "flex"),
        (False, True, 64, "sdpa"),
        (False, False, 4096, "sdpa"),
    ],
)
def test_a_gpu_takes_the_best_that_is_there(
    compiled: bool, triton: bool, n_tokens: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "natten_is_compiled", lambda: compiled)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: triton or None)
    available_backends.cache_clear()
    chosen = choose_backend("auto", "cuda", n_tokens)
    available_backends.cache_clear()
    assert chosen == expected


@pytest.mark.parametrize(
    ("version", "library", "usable"),
    [("0.21.7+torch2130cu130", True, True), ("0.22.0", True, True), ("0.21.5", True, False), ("0.21.7", False, False)],
)
def test_natten_of_wrong_gradients_or_without_kernels_is_not_used(
    version: str, library: bool, usable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "natten", SimpleNamespace(__version__=version, HAS_LIBNATTEN=library))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    assert natten_is_compiled() is usable


@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.parametrize("n_sets", [1, 2])
def test_flex_has_one_mask_over_all_sets_and_makes_it_once(n_sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    monkeypatch.setattr(attention_module, "_compiled_flex", lambda: flex.flex_attention)
    q, k, v = (t.detach() for t in inputs(6, 8, n_sets))
    out = attention_module._flex(q, k, v, (3, 3))
    torch.testing.assert_close(out, reference(q, k, v, 3), atol=1e-5, rtol=1e-4)
    masks = [attention_module._block_mask((6, 8), (3, 3), n_sets, q.device) for _ in range(2)]
    assert masks[0] is masks[1]
    assert masks[0].seq_lengths == (48, 48 * n_sets)


def test_backend_of_a_model_can_be_fixed() -> None:
    denoiser = build_denoiser(TINY)
    set_attention_backend(denoiser, "flex")
    with pytest.raises(ConfigError, match="'flex' cannot run on cpu"):
        denoiser(normal(1, 3, 8, 8), torch.tensor(1.0))
    with pytest.raises(ConfigError, match="unknown attention backend 'flax'"):
        set_attention_backend(denoiser, "flax")


@pytest.mark.parametrize("n_sets", [1, 2])
def test_large_grids_go_by_tiles_with_the_same_result(n_sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(13, 10, n_sets)
    dense = attend(q, k, v, kernel=4, backend="sdpa")
    monkeypatch.setattr("invfusion.models.attention.DENSE_MAX_TOKENS", 100)
    torch.testing.assert_close(attend(q, k, v, kernel=4, backend="sdpa"), dense)
