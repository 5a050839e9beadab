"""Floating-point operations: how many a network needs, and how many this machine does in matrix products."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import interleaved

# The side of the square matrices whose product is timed.
SIDES = {"cpu": 1024, "cuda": 8192}


def matmul_flops(call: Callable[[], Any]) -> int:
    """FLOPs of the matrix products of a call but those within attention; a multiplication and its addition are two."""
    with FlopCounterMode(display=False) as counter:
        call()
    counts = counter.get_flop_counts().get("Global", {})
    return int(sum(n for operation, n in counts.items() if "attention" not in str(operation)))


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOPs per second of a large square product of random matrices in `dtype`, at its fastest."""
    n = SIDES[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / interleaved({"product": lambda: a @ b}, seconds, device)["product"].least
