"""How to spend two CPU cores on one training run: threads within a process, or processes.

Every case trains the default preset on the mixture, 32 images a step. The cases run as processes of their own, in turn.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.records import Record, rounded

# name -> processes, threads of each.
CASES = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
ROUNDS = 2


def threads(device: torch.device, seconds: float) -> Iterator[Record]:  # noqa: ARG001 - every suite has the same form
    """Milliseconds of a step in each case, and the ratio to one thread; nothing on a GPU."""
    if device.type != "cpu":
        return
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, (n_processes, n_threads) in CASES.items():
            taken[name].append(_run(n_processes, n_threads))
    single = median(taken["1 process, 1 thread"])
    for name, times in taken.items():
        yield {
            "suite": "threads",
            "case": name,
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
            "step_ms": rounded(1e3 * median(times)),
            "ratio": rounded(single / median(times)),
            "n": len(times),
        }


def _run(n_processes: int, n_threads: int) -> float:
    """Median seconds of a step, as the first process saw it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *(launcher if n_processes > 1 else []), "-m", "benchmarks.suites.one_run"]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
