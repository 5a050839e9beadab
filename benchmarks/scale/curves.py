"""A curve: one piece of work at growing sizes, its parts timed apart, and the most memory that it held."""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.records import Record, rounded

MIB = 2**20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# A run is repeated, at most so often, until it has taken so many seconds; of each part the least counts.
REPEATS, SECONDS = 5, 0.3
# What is shorter runs twice at least: a first run may make what later ones have.
COLD_SECONDS = 3.0
# Peaks below this are the allocator's own.
LEAST_MIB = 2.0


@dataclass
class Clock:
    """seconds: of each part, by name, the processor's: those of a busy machine's other processes do not count."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start


@dataclass(frozen=True)
class Curve:
    """what: the work; axis: what grows; must: the exponent that the work itself has in it.

    run: does it at one size. What it does outside of the clock's parts (inputs) is not timed.
    """

    what: str
    axis: str
    sizes: Sequence[int]
    must: float
    run: Callable[[int, Clock], object]

    def records(self, limit: float) -> Iterator[Record]:
        """One for each size, as long as the next is not expected to take more than `limit` seconds."""
        self.run(self.sizes[0], Clock())
        taken: list[tuple[int, float]] = []
        for n in self.sizes:
            if taken and expected(taken, n, self.must) > limit:
                return
            clock, peak = self._measured(n)
            taken.append((n, sum(clock.seconds.values())))
            yield {
                "suite": "scale",
                "axis": self.axis,
                "what": self.what,
                "n": n,
                "must": self.must,
                "seconds": rounded(taken[-1][1]),
                "parts": {name: rounded(s) for name, s in clock.seconds.items()},
                "peak_mib": None if peak is None else rounded(peak),
            }

    def _measured(self, n: int) -> tuple[Clock, float | None]:
        with peak_mib() as peak:
            least = Clock()
            self.run(n, least)
        spent = sum(least.seconds.values())
        for repeat in range(1, REPEATS):
            if spent > (SECONDS if repeat > 1 else COLD_SECONDS):
                break
            again = Clock()
            self.run(n, again)
            spent += sum(again.seconds.values())
            least.seconds = {name: min(s, again.seconds[name]) for name, s in least.seconds.items()}
        return least, peak[0]


@contextmanager
def peak_mib() -> Iterator[list[float | None]]:
    """[MiB that the process came to hold within, over what it held before], known at the end; None off Linux."""
    found: list[float | None] = [None]
    if not sys.platform.startswith("linux") or not CLEAR.exists():
        yield found
        return
    gc.collect()
    # Else memory that was freed counts as held already.
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = _held("VmRSS")
    yield found
    found[0] = max(_held("VmHWM") - before, 0.0)


def _held(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def expected(taken: Sequence[tuple[int, float]], n: int, must: float) -> float:
    """Seconds at size n, after those at smaller ones: by the slope of the last two, at most by `must`."""
    (last, seconds), before = taken[-1], taken[-2] if len(taken) > 1 else None
    slope = 1.0 if before is None else math.log(seconds / before[1]) / math.log(last / before[0])
    return seconds * math.pow(n / last, min(max(slope, 0.0), must))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of ln value over ln size by least squares, of the upper half of the sizes; None of fewer than two."""
    points = sorted((math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if v > 0)
    points = points[min(len(points) // 2, max(len(points) - 2, 0)) :]
    if len(points) < 2:
        return None
    x, y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    slope: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope


def dominant(record: Record) -> str:
    """The part that takes most of a run, with its share."""
    name, seconds = max(record["parts"].items(), key=lambda part: part[1])
    return f"{name} ({seconds / max(record['seconds'], 1e-12):.0%})"
