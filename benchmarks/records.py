"""The form of a result."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
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


def revision() -> str | None:
    """The git commit of this code; None where it is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
