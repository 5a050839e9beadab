"""Two CPU cores on one job: the plain reference and ours, with threads within a process, or with processes.

The default preset trains on the mixture, 32 images a step, and samples batches of 64 of each of its families, or
estimates them in one step. The cases run as processes of their own, in turn.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.records import Record, rounded

# name -> what runs, processes, threads of each.
CASES = {
    "plain, 1 process, 2 threads": ("plain", 1, 2),
    "ours, 1 process, 2 threads": ("ours", 1, 2),
    "ours, 2 processes, 1 thread each": ("ours", 2, 1),
}
COMPILED = {"ours, compiled, 2 processes, 1 thread each": ("compiled", 2, 1)}
# In training, low precision gains nothing on a CPU (the table of steps).
LOW = {"ours, compiled, bf16, 2 processes, 1 thread each": ("compiled bf16", 2, 1)}
# job -> how often each case runs.
ROUNDS = {"training": 2, "sampling": 1, "restoring": 2}


def threads(device: torch.device, seconds: float, compiled: bool = False) -> Iterator[Record]:  # noqa: ARG001 - as all
    """Images per second in each case, and its speed over the plain one's; nothing on a GPU."""
    if device.type != "cpu":
        return
    for job, rounds in ROUNDS.items():
        cases = CASES | (COMPILED if compiled else {}) | (LOW if compiled and job != "training" else {})
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(rounds):
            for name, (what, n_processes, n_threads) in cases.items():
                rates[name].append(run(job, what, n_processes, n_threads))
        plain = median(next(iter(rates.values())))
        for name, case in rates.items():
            yield {
                "suite": "threads",
                "job": job,
                "case": name,
                "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
                "images_per_second": rounded(median(case)),
                "ratio": rounded(median(case) / plain),
                "n": rounds,
            }


def run(job: str, what: str, n_processes: int, n_threads: int) -> float:
    """Images per second of all the processes together."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, *(launcher if n_processes > 1 else []), "-m", "benchmarks.suites.one_run", job, what]
    environment = os.environ | {"OMP_NUM_THREADS": str(n_threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])
