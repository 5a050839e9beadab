"""What DVC is asked to run: one stage after another, but trainings that need nothing of each other at once.

On a CPU a process of one thread trains a small model in little more time than two processes that share its batches
(docs/performance.md), so that two models are there sooner side by side than in turn; several GPUs train a model each.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch

from components.children import child
from components.device import is_on_gpu, threads_each
from components.params import Params
from flows import leases
from flows.stages import target

# A stage may have to finish its batch and write a checkpoint.
STAGE_STOP_S = 60
# Between two looks at what runs.
POLL_S = 0.1


def dvc_command(arguments: Sequence[str]) -> list[str]:
    """`dvc repro --pull` with these arguments. Other runs of DVC hold its lock for moments, which are waited for."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--pull", *arguments]


def dvc_environment() -> dict[str, str]:
    """This process's, in which `python`, as the stages say, is the one that runs here."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path}


def run_dvc(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """`dvc repro --pull`, its output passed through; returns its exit code."""
    with child(dvc_command(arguments), {**dvc_environment(), **environment}, STAGE_STOP_S) as dvc:
        return dvc.wait()


def trainings_at_once(params: Params) -> int:
    """How many models this machine trains at once: one for each GPU, or core, that a training is to have."""
    n = len(leases.slots()) if is_on_gpu(params.runtime.device) else torch.get_num_threads()
    return max(1, n // params.runtime.n_devices)


def run_graph(params: Params, stale: Collection[str], targets: Sequence[str], environment: Mapping[str, str]) -> int:
    """Have DVC run what is stale of the targets, or of all, several trainings at once where this machine has room.

    stale: the stages that DVC finds stale before. Returns the first exit code that is not 0.
    """
    needs = sources(params)
    chosen = stale_trainings(needs, stale, targets)
    if (at_once := min(trainings_at_once(params), len(chosen))) > 1:
        threads = {} if is_on_gpu(params.runtime.device) else {"OMP_NUM_THREADS": str(threads_each(at_once))}
        code = run_dvc(["stage"], environment) if "stage" in stale else 0
        if code := code or run_trainings(needs, chosen, at_once, {**environment, **threads}):
            return code
    return run_dvc(targets, environment)


def sources(params: Params) -> dict[str, str | None]:
    """DVC's name of each training, with that of the one that it starts from."""
    starts = {model: params.train.distilled.get(model) for model in params.models}
    return {target(params, "train", model): s and target(params, "train", s) for model, s in starts.items()}


def stale_trainings(needs: Mapping[str, str | None], stale: Collection[str], targets: Collection[str]) -> set[str]:
    """The trainings that targets, or all stages without any, wait for. `needs` as `sources` says.

    stale: the stages that DVC finds stale now; it does not look ahead to what their new results will make stale.
    """
    wanted = set(needs) if not targets or set(targets) - {*needs, "stage"} else set(targets) & set(needs)
    while missing := {source for name in wanted if (source := needs[name])} - wanted:
        wanted |= missing
    return {name for name in wanted if {"stage", name, needs[name]} & set(stale)}


def run_trainings(
    needs: Mapping[str, str | None], chosen: Collection[str], at_once: int, environment: Mapping[str, str]
) -> int:
    """Have DVC bring trainings up to date, at most so many at once, each after the one that it starts from.

    After a failure none begins, and those that run go on to their end. Returns the first exit code that is not 0.
    """
    # What others wait for goes first.
    left = sorted(chosen, key=lambda name: (name not in needs.values(), list(needs).index(name)))
    variables, code = {**dvc_environment(), **environment}, 0
    running: dict[str, subprocess.Popen[bytes]] = {}
    with contextlib.ExitStack() as stack:
        while True:
            ready = [] if code else [name for name in left if needs[name] not in {*left, *running}]
            for name in ready[: at_once - len(running)]:
                left.remove(name)
                command = dvc_command(["--single-item", name])
                running[name] = stack.enter_context(child(command, variables, STAGE_STOP_S))
            if not running:
                return code
            time.sleep(POLL_S)
            ended = {name: dvc.returncode for name, dvc in running.items() if dvc.poll() is not None}
            running = {name: dvc for name, dvc in running.items() if name not in ended}
            code = next(filter(None, [code, *ended.values()]), 0)
