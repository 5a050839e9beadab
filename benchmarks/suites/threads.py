"""Two CPU cores on one training run: the plain reference and ours, with threads within a process, or with processes.

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

# name -> what trains, processes, threads of each.
CASES = {
    "plain, 1 process, 2 threads": ("plain", 1, 2),
    "ours, 1 process, 2 threads": ("ours", 1, 2),
    "ours, 2 processes, 1 thread each": ("ours", 2, 1),
}
COMPILED = {"ours, compiled, 2 processes, 1 thread each": ("compiled", 2, 1)}
ROUNDS = 2


def threads(device: torch.device, seconds: float, compiled: bool = False) -> Iterator[Record]:  # noqa: ARG001 - as all
    """Milliseconds of a step in each case, and its speed over the plain one's; nothing on a GPU."""
    if device.type != "cpu":
        return
    cases = CASES | (COMPILED if compiled else {})
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (what, n_processes, n_threads) in cases.items():
            taken[name].append(_run(what, n_processes, n_threads))
    plain = median(next(iter(taken.values())))
    for name, times in taken.items():
        yield {
            "suite": "threads",
            "case": name,
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
            "step_ms": rounded(1e3 * median(times)),
            "ratio": rounded(plain / median(times)),
            "n": len(times),
        }


def _run(what: str, n_processes: int, n_threads: int) -> float:
    """Mean seconds of a step, as the first process saw it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *(launcher if n_processes > 1 else []), "-m", "benchmarks.suites.one_run", what]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
