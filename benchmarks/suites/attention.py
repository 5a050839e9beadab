"""Joint attention (two sets of keys) of every available backend, at the shapes of the presets' levels."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import dense_attention
from benchmarks.records import Record, compared
from benchmarks.setting import Setting
from benchmarks.timing import interleaved
from invfusion import rng
from invfusion.models import LevelConfig, available_backends
from invfusion.models.attention import attend, neighbourhood_mask, window_of


def attention(device: torch.device, seconds: float) -> Iterator[Record]:
    """Forward and backward, a level of a preset at a time."""
    for preset in ("digits16", "ffhq64", "ffhq256"):
        setting = Setting(preset, device)
        for index, level in enumerate(setting.config.levels):
            yield from _level(setting, index, level, seconds)


def _level(setting: Setting, index: int, level: LevelConfig, seconds: float) -> Iterator[Record]:
    config, b = setting.config, setting.batch_size
    side = config.image_shape[1] // config.patch_at(index)
    heads = (level.width // config.head_dim, config.head_dim)
    draws = rng.generators(0, "benchmarks/attention", range(b))
    q = rng.randn((side, side, *heads), draws, setting.device)
    k, v = (rng.randn((2, side, side, *heads), draws, setting.device) for _ in range(2))
    is_global = level.kernel == "global" or level.kernel >= side
    for backend in ["sdpa"] if is_global else available_backends(setting.device.type):
        calls = {
            "ours": _pass(lambda q, k, v, name=backend: attend(q, k, v, level.kernel, name), q, k, v),
            "plain": _pass(lambda q, k, v: _plain(q, k, v, level), q, k, v),
        }
        times = interleaved(calls, seconds, setting.device)
        yield compared(
            "attention", times, preset=setting.name, tokens=side**2, kernel=level.kernel, heads=heads[0],
            backend=backend, images=b,
        )  # fmt: skip


def _pass(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], Any]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def call() -> None:
        out = function(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return call


def _plain(q: Tensor, k: Tensor, v: Tensor, level: LevelConfig) -> Tensor:
    grid = (q.shape[1], q.shape[2])
    is_global = level.kernel == "global" or level.kernel >= max(grid)
    mask = None if is_global else neighbourhood_mask(grid, window_of(grid, int(level.kernel)), 1, q.device)
    keys, values = ([part.flatten(1, 2).transpose(1, 2) for part in t.unbind(1)] for t in (k, v))
    return dense_attention(q.flatten(1, 2).transpose(1, 2), keys, values, mask)
