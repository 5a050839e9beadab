"""Interleaved timing: what is compared runs in turn, so that a busy machine slows all of it alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call: the median and the least of n."""

    median: float
    least: float
    n: int


def interleaved(
    calls: Mapping[str, Callable[[], Any]], seconds: float, device: torch.device, at_least: int = 3, at_most: int = 200
) -> dict[str, Timing]:
    """Run the calls in turn, A B C A B C ..., for about so many seconds after one round of warming up."""
    for call in calls.values():
        _timed(call, device)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for n in range(at_most):
        if n >= at_least and time.perf_counter() > end:
            break
        for name, call in calls.items():
            taken[name].append(_timed(call, device))
    return {name: Timing(statistics.median(times), min(times), len(times)) for name, times in taken.items()}


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
