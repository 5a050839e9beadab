"""Floating-point operations: how many a network needs, and how many this machine does in matrix products."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import interleaved
from invfusion.models import DenoiserConfig
from invfusion.models.attention import window_of

# The side of the square matrices whose product is timed.
SIDES = {"cpu": 1024, "cuda": 8192}


def matmul_flops(call: Callable[[], Any]) -> int:
    """FLOPs of the matrix products of a call but those within attention; a multiplication and its addition are two."""
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts().get("Global", {})
    return int(sum(n for operation, n in counts.items() if "attention" not in str(operation)))


def attention_flops(config: DenoiserConfig) -> int:
    """FLOPs of attention in one forward pass of one image: what is needed, whatever a backend computes and masks."""
    total = 0
    for index, level in enumerate(config.levels):
        ways = 1 if index == len(config.levels) - 1 else 2
        grid = (config.image_shape[1] // config.patch_at(index), config.image_shape[2] // config.patch_at(index))
        window = grid if level.kernel == "global" else window_of(grid, level.kernel)
        n_keys = window[0] * window[1] * (2 if config.has_invfusion_blocks(index) else 1)
        total += ways * level.depth * 4 * grid[0] * grid[1] * n_keys * level.width
    return total


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOPs per second of a large square matrix product in `dtype`, at its fastest."""
    n = SIDES[device.type]
    a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / interleaved({"product": lambda: a @ b}, seconds, device)["product"].least
