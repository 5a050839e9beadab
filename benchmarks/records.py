"""The form of a result."""

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

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


def machine_facts(device: torch.device) -> Record:
    """What runs the measurements, and how busy it is."""
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average": None if is_gpu else rounded(os.getloadavg()[0]),
        "torch": torch.__version__,
        "git_revision": revision(),
    }


def revision() -> str | None:
    """The git commit of this code; None where it is no repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
