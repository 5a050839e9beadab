"""What DVC is asked to run: one stage after another, but trainings that need nothing of each other at once.

On a CPU two processes that share a small model's batches are far from twice as fast as one
(docs/performance.md), so that two models are there sooner side by side than in turn; several GPUs train a model each.
"""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from components.at_once import run_at_once, trainings_at_once
from components.children import child
from components.device import is_on_gpu
from components.params import Params
from flows import leases
from flows.stages import target

# The stages that wait for all models.
JUDGES = frozenset({"evaluate", "report", "register"})
# A stage may have to finish its batch and write a checkpoint.
STAGE_STOP_S = 60


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


def run_graph(params: Params, stale: Collection[str], targets: Sequence[str], environment: Mapping[str, str]) -> int:
    """Have DVC run what is stale of the targets, or of all, several trainings at once where this machine has room.

    stale: the stages that DVC finds stale before. Returns the first exit code that is not 0.
    """
    needs = sources(params)
    chosen = stale_trainings(needs, stale, targets)
    on_gpu = is_on_gpu(params.runtime.device)
    at_once = trainings_at_once(params, len(leases.slots()) if on_gpu else 0)
    if at_once > 1 and len(chosen) > 1:
        code = run_dvc(["stage"], environment) if "stage" in stale else 0
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
    GPU they share this process's threads. Returns the first exit code that is not 0."""
    commands = {name: dvc_command(["--single-item", name]) for name in needs if name in chosen}
    variables = {**dvc_environment(), **environment}
    return run_at_once(commands, needs, at_once, variables, STAGE_STOP_S, share_threads=not on_gpu)
