"""Measure a GPU within a few minutes: python -m benchmarks.lease --minutes 4

It needs `invfusion/` and `benchmarks/` alone. The most important comes first; each case has a limit of its own, a
failure is recorded and the next case goes on, and the JSON file is written after every case, so that a run that is cut
off loses nothing. With `--device cpu` the same code runs on narrow networks, to try it.
"""

import argparse
import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.doctor import diagnosis
from benchmarks.document import PERFORMANCE, update
from benchmarks.lease import equal, speed
from benchmarks.lease.lab import Lab
from benchmarks.lease.learning import learning
from benchmarks.records import Record, rounded
from benchmarks.setting import Model, family

OUTPUT = Path("benchmarks/results/cuda.json")
# Whose weights are made meanwhile, in the order in which they are needed, and what names the cases that need them.
NETWORKS: dict[str, tuple[str, Model]] = {
    "ffhq64": ("ffhq64", "invfusion"),
    "ffhq64-gaussian": ("ffhq64", "invfusion_g"),
    "digits16": ("digits16", "invfusion"),
    "ffhq256": ("ffhq256", "invfusion"),
    "imagenet64": ("imagenet64", "invfusion"),
}
# Seconds below which no case is begun.
LEAST = 5.0

log = logging.getLogger("benchmarks")


class OutOfTime(BaseException):
    """A case's time is over. No `Exception`, so that nothing on the way takes it for a failure to recover from."""


@dataclass(frozen=True)
class Case:
    """seconds: after which it is cut off; what it had yielded is kept."""

    name: str
    seconds: float
    records: Callable[[Lab], Iterator[Record]]


def plan(learning_seconds: float) -> list[Case]:
    """All cases, the most important first."""
    train, sample = speed.training, speed.sampling
    compiled, sampled = partial(train, how="layers compiled"), partial(sample, how="layers compiled")
    exact = partial(train, preset="ffhq64", precision="fp32", micro=64)
    # A micro-batch's matrices and their inverses take 0.8 GB at 64 images, and threads hold two each.
    matrices = partial(train, preset="ffhq64", degradation=family("matrix"), micro=64, threads=8)
    return [
        Case("ceilings", 20, speed.ceilings),
        Case("equal-operators", 20, equal.operators),
        Case("train-ffhq64", 45, partial(train, preset="ffhq64")),
        Case("sample-ffhq64", 30, partial(sample, preset="ffhq64")),
        Case("parts-ffhq64", 40, partial(speed.parts, preset="ffhq64")),
        Case("equal-attention", 60, equal.attention),
        Case("attention", 40, speed.attention),
        Case("train-ffhq64-layers", 120, partial(compiled, preset="ffhq64", kernels=True)),
        Case("sample-ffhq64-layers", 60, partial(sampled, preset="ffhq64")),
        Case("train-ffhq64-larger", 100, partial(compiled, preset="ffhq64", micro=256, kernels=True)),
        Case("sample-ffhq64-larger", 60, partial(sampled, preset="ffhq64", n=256)),
        Case("train-ffhq64-sdpa", 30, partial(train, preset="ffhq64", backend="sdpa", seconds=3)),
        Case("gaussian-ffhq64", 40, partial(speed.gaussian, preset="ffhq64")),
        Case("train-ffhq64-gaussian", 90, partial(compiled, preset="ffhq64", model="invfusion_g", kernels=True)),
        Case(
            "train-ffhq64-gaussian-larger", 90,
            partial(compiled, preset="ffhq64", model="invfusion_g", micro=256, kernels=True),
        ),
        Case("sample-ffhq64-gaussian", 60, partial(sampled, preset="ffhq64", model="invfusion_g")),
        Case("largest-ffhq64", 40, partial(speed.largest, preset="ffhq64")),
        Case("equal-network", 40, equal.network),
        Case("learning", 40 + learning_seconds, partial(learning, preset="small64", seconds=learning_seconds)),
        Case("sample-ffhq64-one", 30, partial(sample, preset="ffhq64", n=1)),
        Case("train-digits16", 20, partial(train, preset="digits16", seconds=3)),
        Case("sample-digits16", 20, partial(sample, preset="digits16")),
        Case("train-ffhq64-matrix", 40, partial(matrices, seconds=3)),
        Case("train-ffhq64-fp32", 40, partial(exact, seconds=3)),
        Case("train-ffhq64-tf32", 40, partial(exact, seconds=3, tf32=True)),
        Case("train-ffhq256-layers", 90, partial(compiled, preset="ffhq256", seconds=3)),
        Case("train-ffhq256-larger", 90, partial(compiled, preset="ffhq256", micro=128, seconds=3)),
        Case("sample-ffhq256-layers", 60, partial(sampled, preset="ffhq256")),
        Case("sample-imagenet64-layers", 60, partial(sampled, preset="imagenet64")),
        Case("train-imagenet64-layers", 60, partial(compiled, preset="imagenet64", seconds=3)),
        Case("train-ffhq64-whole", 150, partial(train, preset="ffhq64", how="whole compiled", seconds=3)),
    ]  # fmt: skip


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in this thread after so many seconds."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Lease:
    """One run: what it knows of the machine, and its records so far, in `output` at any time."""

    lab: Lab
    output: Path
    end: float
    facts: dict[str, Any]
    records: list[Record] = field(default_factory=list)

    def run(self, case: Case) -> None:
        """Run a case as long as it may, and keep what it found."""
        left = self.end - time.monotonic()
        if left < LEAST:
            self._keep({"suite": case.name, "case": "", "skipped": "no time was left"})
            return
        start, problem = time.monotonic(), None
        try:
            with limited(min(case.seconds, left)):
                for record in case.records(self.lab):
                    self._keep({"suite": case.name, **record})
        except OutOfTime:
            problem = f"cut off after {time.monotonic() - start:.0f} s"
        except Exception as error:  # noqa: BLE001 - whatever fails, the next case is worth its time
            traceback.print_exc()
            problem = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error) else ''}"
        if problem is not None:
            self._keep({"suite": case.name, "case": "", "failed": problem})
        self.facts.setdefault("seconds", {})[case.name] = rounded(time.monotonic() - start)
        self.lab.forget()
        self._write()

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        log.info("%s", line(record))
        self._write()

    def _write(self) -> None:
        names, peaks = {"float32": "fp32", "bfloat16": "bf16"}, self.lab.peaks
        speeds = {name: rounded(peaks[short] / 1e9) for name, short in names.items() if short in peaks}
        machine = self.facts | {"matmul_gflops": speeds}
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps({"machine": machine, "records": self.records}, indent=1) + "\n")


def line(record: Record) -> str:
    """A record as one line of text."""
    values = "  ".join(f"{name} {value}" for name, value in record.items() if name not in ("suite", "case"))
    return f"{record['suite']:24s} {record['case']}: {values}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.lease", description=__doc__)
    names = [case.name for case in plan(0)]
    parser.add_argument("--minutes", type=float, default=10, help="after which nothing is begun or goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    parser.add_argument("--learning-seconds", type=float, default=60, help="of real training")
    parser.add_argument("--output", type=Path, help=f"the JSON file; default: {OUTPUT}, lease.json on a CPU")
    return parser.parse_args()


def main() -> None:
    start, arguments = time.monotonic(), parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("invfusion").setLevel(logging.WARNING)
    torch._dynamo.config.recompile_limit = 512
    lab = Lab(torch.device(arguments.device))
    output = arguments.output or (OUTPUT if lab.is_gpu else Path("lease.json"))
    lease = Lease(lab, output, start + 60 * arguments.minutes, speed.machine(lab))
    lease.facts["diagnosis"] = list(diagnosis(lab.device))
    log.info("%s\n%s", lease.facts, "\n".join(lease.facts["diagnosis"]))
    cases = {case.name: case for case in plan(arguments.learning_seconds)}
    try:
        lab.begin(*(network for part, network in NETWORKS.items() if any(part in name for name in arguments.only)))
        for name in arguments.only:
            lease.run(cases[name])
    finally:
        lab.close()
    if output == OUTPUT and PERFORMANCE.exists():
        update(PERFORMANCE, OUTPUT.parent)
    log.info("\n%s", "\n".join(line(record) for record in lease.records))
    log.info("%.0f s; seconds by case: %s", time.monotonic() - start, lease.facts.get("seconds"))


if __name__ == "__main__":
    main()
