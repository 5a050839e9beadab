"""Neighbourhood and global attention, each over one or several sets of keys, behind one function with three backends.

`attend` takes queries (B, H, W, heads, e) and keys and values (B, S, H, W, heads, e). With S = 1 it is plain attention;
with S = 2 it is the joint attention of the InvFusion block: one softmax over the union of both sets.
Logits are the plain dot products. In neighbourhood attention each query sees, in every set, the kernel x kernel window
centred on it, shifted at the borders to stay inside; a kernel wider than the grid sees the whole axis.

Backends: "sdpa" masks PyTorch's attention and runs everywhere; "natten" runs fused neighbourhood kernels; "flex" runs
compiled flex_attention on CUDA devices. Weights never depend on the backend, and tests prove the backends equal.
"""

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import ConfigError
from invfusion.models.natten_wheel import is_right

Backend = Literal["sdpa", "natten", "flex"]
Grid = tuple[int, int]
# Below this many tokens a dense mask beats a sparse one, whose blocks hold 128 tokens.
FLEX_MIN_TOKENS = 1024
# Compiled kernels of flex attention, by shape, precision and direction.
MAX_KERNELS = 64
# Above this many tokens "sdpa" goes through the grid by tiles, since the dense mask grows with their square.
DENSE_MAX_TOKENS = 4096


@cache
def available_backends(device_type: str = "cpu") -> tuple[Backend, ...]:
    """The backends that can compute values and gradients on a kind of device, the preferred one first."""
    found: list[Backend] = ["sdpa"]
    if device_type == "cuda":
        if importlib.util.find_spec("triton") is not None:
            found.insert(0, "flex")
        if natten_is_compiled():
            found.insert(0, "natten")
    return tuple(found)


def mark_constants() -> None:
    """Tell PyTorch's compiler what to keep in a graph as a constant.

    For who compiles; decorators would say it at import, and load the compiler where nothing is compiled.
    """
    for made_once in (choose_backend, _dense_mask, _made_block_mask):
        torch.compiler.assume_constant_result(made_once)  # type: ignore[no-untyped-call]


def check_backend(name: str) -> None:
    """Raises `ConfigError` where `name` is neither a backend nor "auto"."""
    if name not in ("auto", *get_args(Backend)):
        raise ConfigError(f"unknown attention backend '{name}'; valid are auto, {', '.join(get_args(Backend))}")


def choose_backend(requested: str, device_type: str, n_tokens: int) -> Backend:
    """The backend for one call; `requested` is a backend's name or "auto". Raises `ConfigError`."""
    available = available_backends(device_type)
    for backend in available:
        if backend == requested or (requested == "auto" and (backend != "flex" or n_tokens >= FLEX_MIN_TOKENS)):
            return backend
    raise ConfigError(
        f"attention backend '{requested}' cannot run on {device_type} here; use auto, {' or '.join(available)}"
    )


def attend(q: Tensor, k: Tensor, v: Tensor, kernel: int | Literal["global"], backend: str = "auto") -> Tensor:
    """(B, H, W, heads, e) queries over (B, S, H, W, heads, e) keys and values -> (B, H, W, heads, e)."""
    grid = (q.shape[1], q.shape[2])
    name = choose_backend(backend, q.device.type, grid[0] * grid[1])
    if kernel == "global" or kernel >= max(grid):
        return _flat(q, k, v, F.scaled_dot_product_attention)
    return _NEIGHBOURHOOD[name](q, k, v, window_of(grid, kernel))


def window_of(grid: Grid, kernel: int) -> Grid:
    """The window's sides: the kernel, cut to the grid."""
    return min(kernel, grid[0]), min(kernel, grid[1])


def _flat(q: Tensor, k: Tensor, v: Tensor, attention: Callable[..., Tensor]) -> Tensor:
    """Run an attention over (B, heads, tokens, e); the sets become one longer token axis."""
    out = attention(
        q.flatten(1, 2).transpose(1, 2), k.flatten(1, 3).transpose(1, 2), v.flatten(1, 3).transpose(1, 2), scale=1.0
    )
    return out.transpose(1, 2).reshape(q.shape)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, window: Grid) -> Tensor:
    if q.shape[1] * q.shape[2] > DENSE_MAX_TOKENS:
        return _sdpa_by_tiles(q, k, v, window)
    mask = _dense_mask((q.shape[1], q.shape[2]), window, k.shape[1], q.device)
    return _flat(q, k, v, partial(F.scaled_dot_product_attention, attn_mask=mask))


def _sdpa_by_tiles(q: Tensor, k: Tensor, v: Tensor, window: Grid) -> Tensor:
    """The same for tiles of queries as large as the window, each with the keys that any of them sees."""
    (rows, keys_by_row), (columns, keys_by_column) = (
        (_tiles(n, side), _axis_mask(n, side, q.device).bool()) for n, side in zip(q.shape[1:3], window, strict=True)
    )

    def tile(row: slice, column: slice) -> Tensor:
        seen_row, seen_column = _seen(row, q.shape[1], window[0]), _seen(column, q.shape[2], window[1])
        mask = torch.kron(keys_by_row[row, seen_row].int(), keys_by_column[column, seen_column].int()).bool()
        attention = partial(F.scaled_dot_product_attention, attn_mask=mask.repeat(1, k.shape[1]))
        keys, values = (t[:, :, seen_row, seen_column] for t in (k, v))
        return _flat(q[:, row, column], keys, values, attention)

    return torch.cat([torch.cat([tile(row, column) for column in columns], dim=2) for row in rows], dim=1)


def _tiles(n: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, n)) for start in range(0, n, side)]


def _seen(queries: slice, n: int, side: int) -> slice:
    """The keys of one axis of length n that any of some queries sees: they lie next to each other."""
    first, last = (min(max(query - side // 2, 0), n - side) for query in (queries.start, queries.stop - 1))
    return slice(first, last + side)


def _dense_mask(grid: Grid, window: Grid, n_sets: int, device: torch.device) -> Tensor:
    """`neighbourhood_mask` as a compiled network takes it: a constant, not made anew at every call."""
    with torch.inference_mode(False):
        return neighbourhood_mask(grid, window, n_sets, device)


@cache
def neighbourhood_mask(grid: Grid, window: Grid, n_sets: int, device: torch.device) -> Tensor:
    """Which of the S * T keys each of the T queries sees: boolean (T, S * T), T = H * W."""
    rows, columns = (_axis_mask(n, k, device) for n, k in zip(grid, window, strict=True))
    return torch.kron(rows, columns).bool().repeat(1, n_sets)


def _axis_mask(n: int, kernel: int, device: torch.device) -> Tensor:
    """Visibility along one axis, integer (n, n)."""
    position = torch.arange(n, device=device)
    start = _window_start(position, n, kernel)[:, None]
    return ((position >= start) & (position < start + kernel)).int()


def _window_start(position: Tensor, n: int, kernel: int) -> Tensor:
    return (position - kernel // 2).clamp(0, n - kernel)


def natten_is_compiled() -> bool:
    """Whether natten is installed with its CUDA library, and new enough.

    Without the library it is slow and has no gradients; before `natten_wheel.VERSION` some gradients were wrong.
    """
    if importlib.util.find_spec("natten") is None:
        return False
    import natten

    return bool(natten.HAS_LIBNATTEN) and is_right(natten.__version__)


def _natten(q: Tensor, k: Tensor, v: Tensor, window: Grid) -> Tensor:
    """One fused call per set of keys; the results merge by their log-sum-exp into one softmax over all sets."""
    from natten.functional import merge_attentions, na2d

    sets = range(k.shape[1])
    parts = [na2d(q, k[:, s], v[:, s], kernel_size=window, scale=1.0, return_lse=True) for s in sets]
    if len(parts) == 1:
        return parts[0][0]  # type: ignore[no-any-return]
    outputs = [out.flatten(1, 2) for out, _ in parts]
    merged, _ = merge_attentions(outputs, [lse.flatten(1, 2) for _, lse in parts], torch_compile=False)
    return merged.reshape(q.shape)  # type: ignore[no-any-return]


def _flex(q: Tensor, k: Tensor, v: Tensor, window: Grid) -> Tensor:
    mask = _block_mask((q.shape[1], q.shape[2]), window, k.shape[1], q.device)
    from torch.nn.attention.flex_attention import flex_attention

    # Within a compiled network it is compiled along.
    attention: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    return _flat(q, k, v, partial(attention, block_mask=mask))


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Each shape of queries has a kernel of its own; beyond the limit flex attention would run as dense products.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_KERNELS)
    return torch.compile(flex_attention, dynamic=False)


class _BlockMasks:
    """Holds block masks as attributes, where a compiled network finds them instead of making them at every call."""


_BLOCK_MASKS = _BlockMasks()


def _block_mask(grid: Grid, window: Grid, n_sets: int, device: torch.device) -> Any:
    return getattr(_BLOCK_MASKS, _made_block_mask(grid, window, n_sets, device))


def _made_block_mask(grid: Grid, window: Grid, n_sets: int, device: torch.device) -> str:
    """The name of the attribute of `_BLOCK_MASKS` that holds it."""
    name = "_".join(str(n) for n in (*grid, *window, n_sets, device.type, device.index or 0))
    if not hasattr(_BLOCK_MASKS, name):
        with torch.inference_mode(False):
            setattr(_BLOCK_MASKS, name, _flex_mask(grid, window, n_sets, device))
    return name


def _flex_mask(grid: Grid, window: Grid, n_sets: int, device: torch.device) -> Any:
    """The block mask of neighbourhood attention over several sets of keys."""
    from torch.nn.attention.flex_attention import create_block_mask

    n = grid[0] * grid[1]
    return create_block_mask(
        neighbourhood_rule(grid, window), B=None, H=None, Q_LEN=n, KV_LEN=n_sets * n, device=str(device)
    )


def neighbourhood_rule(grid: Grid, window: Grid) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`neighbourhood_mask` as a function of token indices, in the form that flex_attention asks for."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        key = key % (grid[0] * grid[1])
        row = _window_start(query // grid[1], grid[0], window[0])
        column = _window_start(query % grid[1], grid[1], window[1])
        key_row, key_column = key // grid[1], key % grid[1]
        rows = (key_row >= row) & (key_row < row + window[0])
        return rows & (key_column >= column) & (key_column < column + window[1])

    return sees


_NEIGHBOURHOOD: dict[Backend, Callable[[Tensor, Tensor, Tensor, Grid], Tensor]] = {
    "sdpa": _sdpa,
    "natten": _natten,
    "flex": _flex,
}
