"""What a computation takes: wall-clock time and peak memory."""

import contextlib
import math
import time
from pathlib import Path
from typing import Self

import torch

MIB = 2**20


class Meter:
    """Measures the block that it surrounds.

    seconds: wall clock, with a GPU's work finished. peak_memory: MiB; on a GPU what tensors took at most, on a CPU what
    the whole process held; nan where the system does not tell.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds, self.peak_memory = 0.0, math.nan

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Linux: 5 resets the high-water mark of the resident memory.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        if self.device.type == "cuda":
            self.peak_memory = torch.cuda.max_memory_allocated(self.device) / MIB
        else:
            self.peak_memory = resident("VmHWM")


def resident(what: str = "VmRSS") -> float:
    """MiB of memory that this process holds, or held at most ("VmHWM"); nan where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), math.nan)
