"""Two CPU cores on one job: the plain reference and ours, with threads within a process, or with processes.

The default preset trains on the mixture, 32 images a step, and samples batches of 64 of each of its families, or
estimates them in one step. The cases run as processes of their own, in turn. Threads that share a process wait for each
other passively or actively (OMP_WAIT_POLICY), which can be a factor of two, so both are measured.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.records import Record, rounded


@dataclass(frozen=True)
class Case:
    """What runs, in how many processes of how many threads, and how these wait."""

    name: str
    what: str
    n_processes: int
    n_threads: int
    wait_policy: str = "PASSIVE"


CASES = (
    Case("plain, 1 process, 2 threads", "plain", 1, 2),
    Case("plain, 1 process, 2 threads", "plain", 1, 2, "ACTIVE"),
    Case("ours, 1 process, 2 threads", "ours", 1, 2),
    Case("ours, 1 process, 2 threads", "ours", 1, 2, "ACTIVE"),
    Case("ours, 2 processes, 1 thread each", "ours", 2, 1),
)
# The plain training has no second process.
APART = Case("plain, 2 processes, 1 thread each", "plain", 2, 1)
COMPILED = Case("ours, compiled, 2 processes, 1 thread each", "compiled", 2, 1)
# In training, low precision gains nothing on a CPU (the table of steps).
LOW = Case("ours, compiled, bf16, 2 processes, 1 thread each", "compiled bf16", 2, 1)
# job -> how often each case runs.
ROUNDS = {"training": 2, "sampling": 1, "restoring": 2}


def threads(device: torch.device, seconds: float, compiled: bool = False) -> Iterator[Record]:  # noqa: ARG001 - as all
    """Images per second in each case, and its speed over the plain one's at its best; nothing on a GPU."""
    if device.type != "cpu":
        return
    for job, rounds in ROUNDS.items():
        cases = cases_of(job, compiled)
        seen = [[run(job, case) for case in cases] for _ in range(rounds)]
        rates = [median(of_case) for of_case in zip(*seen, strict=True)]
        pairs = list(zip(cases, rates, strict=True))
        plain = max(rate for case, rate in pairs if case.what == "plain")
        for case, rate in pairs:
            yield {
                "suite": "threads",
                "job": job,
                "case": case.name,
                "wait_policy": case.wait_policy,
                "images_per_second": rounded(rate),
                "ratio": rounded(rate / plain),
                "n": rounds,
            }


def cases_of(job: str, compiled: bool) -> list[Case]:
    """The cases of a job."""
    training = job == "training"
    return [
        *CASES,
        *([] if training else [APART]),
        *([COMPILED] if compiled else []),
        *([LOW] if compiled and not training else []),
    ]


def run(job: str, case: Case) -> float:
    """Images per second of all the processes together."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.n_processes}"]
    module = ["-m", "benchmarks.suites.one_run", job, case.what]
    command = [sys.executable, *(launcher if case.n_processes > 1 else []), *module]
    environment = os.environ | {"OMP_NUM_THREADS": str(case.n_threads), "OMP_WAIT_POLICY": case.wait_policy}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["images_per_second"])
