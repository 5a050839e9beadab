"""The form of a result."""

from collections.abc import Mapping
from typing import Any

from benchmarks.timing import Timing

Record = dict[str, Any]


def compared(suite: str, times: Mapping[str, Timing], **facts: Any) -> Record:
    """A record of "ours" against "plain": milliseconds of one call (median), and the ratio of the medians."""
    ours, plain = times["ours"], times["plain"]
    return {
        "suite": suite,
        **facts,
        "ours_ms": milliseconds(ours),
        "plain_ms": milliseconds(plain),
        "ratio": rounded(plain.median / ours.median),
        "ratio_of_least": rounded(plain.least / ours.least),
        "n": ours.n,
    }


def milliseconds(timing: Timing) -> float:
    return rounded(1e3 * timing.median)


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
