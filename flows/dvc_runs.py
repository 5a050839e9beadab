"""What DVC is asked to run: one stage after another, but trainings that need nothing of each other at once.

On a CPU two processes that share a small model's batches are far from twice as fast as one
(docs/performance.md), so that two models are there sooner side by side than in turn; several GPUs train a model each.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from components.children import child
from components.device import is_on_gpu, threads_each
from components.params import Params
from flows import leases
from flows.stages import target

log = logging.getLogger(__name__)

# The stages that wait for all models.
JUDGES = frozenset({"evaluate", "report", "register"})
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
    at_once = trainings_at_once(params)
    if at_once > 1 and len(chosen) > 1:
        code = run_dvc(["stage"], environment) if "stage" in stale else 0
        on_gpu = is_on_gpu(params.runtime.device)
        if code := code or run_trainings(needs, chosen, at_once, environment, on_gpu=on_gpu):
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
    if not targets or JUDGES & set(targets):
        wanted = set(needs)
    else:
        wanted = {name for name in needs if {name, name.partition("@")[0]} & set(targets)}
    while missing := {source for name in wanted if (source := needs[name])} - wanted:
        wanted |= missing
    return {name for name in wanted if {"stage", name, needs[name]} & set(stale)}


def run_trainings(
    needs: Mapping[str, str | None],
    chosen: Collection[str],
    at_once: int,
    environment: Mapping[str, str],
    *,
    on_gpu: bool = False,
) -> int:
    """Have DVC bring trainings up to date, at most so many at once, each after the one that it starts from; without a
    GPU those that run, or begin together, share this process's threads.

    After a failure none begins, and those that run go on to their end. Returns the first exit code that is not 0.
    """
    # What others wait for goes first.
    left = sorted((name for name in needs if name in chosen), key=lambda name: name not in needs.values())
    running: dict[str, tuple[contextlib.ExitStack, subprocess.Popen[bytes]]] = {}
    variables, code = {**dvc_environment(), **environment}, 0
    try:
        while True:
            ready = [] if code else [name for name in left if needs[name] not in {*left, *running}]
            sharing = min(at_once, len(ready) + len(running))
            for name in ready[: at_once - len(running)]:
                left.remove(name)
                threads = {} if on_gpu else {"OMP_NUM_THREADS": str(threads_each(sharing))}
                stack, command = contextlib.ExitStack(), dvc_command(["--single-item", name])
                running[name] = stack, stack.enter_context(child(command, variables | threads, STAGE_STOP_S))
            if not running:
                return code
            time.sleep(POLL_S)
            for name in [name for name, (_, dvc) in running.items() if dvc.poll() is not None]:
                stack, dvc = running.pop(name)
                stack.close()
                if dvc.returncode:
                    log.error("%s stopped with exit code %d; its own message stands above", name, dvc.returncode)
                code = code or dvc.returncode
    finally:
        # Each may take a while to write its checkpoint, and a host that ends its processes waits for none.
        with ThreadPoolExecutor(max(1, len(running))) as pool:
            list(pool.map(lambda one: one[0].close(), running.values()))
