"""What DVC is asked to run: one stage after another, but those that need nothing of each other at once.

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
from components.params import Params, read_values
from flows import leases
from flows.stages import GRAPH, target

# What waits for the models, and for which of each other.
JUDGES: dict[str, set[str]] = {"evaluate": set(), "report": {"evaluate"}, "register": {"evaluate"}}
# The stages of dvc.yaml as it comes.
OWN = {"identify", "stage", "train", "distill", *JUDGES}
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
    """Have DVC run what is stale of the targets, or of all, several stages at once where this machine has room.

    stale: the stages that DVC finds stale before. Returns the first exit code that is not 0.
    """
    graph = needs(params)
    chosen = to_run(graph, stale, targets)
    on_gpu = is_on_gpu(params.runtime.device)
    at_once = trainings_at_once(params, len(leases.slots()) if on_gpu else 0)
    # Where somebody has put stages of their own into dvc.yaml, or asks for others, DVC alone knows what waits for them.
    # The data, which it counts among the stages, come with the first.
    names = [name for name in (*targets, *stale) if not name.endswith(".dvc")]
    is_ours = read_values(GRAPH)["stages"].keys() <= OWN and all(expanded(graph, [name]) for name in names)
    if at_once == 1 or not is_ours:
        return run_dvc(targets, environment)
    # With what it waits for: the data, and `identify`.
    code = run_dvc(["stage"], environment) if "stage" in chosen else 0
    return code or run_stages(graph, chosen - {"stage"}, at_once, environment, on_gpu=on_gpu)


def needs(params: Params) -> dict[str, set[str]]:
    """DVC's name of each stage that runs without targets, and those that it waits for."""
    starts = {model: params.train.distilled.get(model) for model in params.models}
    trainings = {
        target(params, "train", model): {"stage"} | ({target(params, "train", start)} if start else set())
        for model, start in starts.items()
    }
    return {"stage": set()} | trainings | JUDGES | {"evaluate": set(trainings)}


def to_run(graph: Mapping[str, Collection[str]], stale: Collection[str], targets: Collection[str]) -> set[str]:
    """The stages that targets, or all without any, wait for and that are stale, or may be once others have run.

    stale: the stages that DVC finds stale now; it does not look ahead to what their new results will make stale.
    """
    wanted = closure(expanded(graph, targets) if targets else graph, graph)
    return {name for name in wanted if closure([name], graph) & set(stale)}


def expanded(graph: Collection[str], targets: Collection[str]) -> set[str]:
    """The stages of the graph that targets mean: `train` all of that stage."""
    return {name for name in graph if {name, name.partition("@")[0]} & set(targets)}


def closure(names: Collection[str], graph: Mapping[str, Collection[str]]) -> set[str]:
    """They, and all that they wait for."""
    found = set(names)
    while missing := {needed for name in found for needed in graph[name]} - found:
        found |= missing
    return found


def run_stages(
    graph: Mapping[str, Collection[str]],
    chosen: Collection[str],
    at_once: int,
    environment: Mapping[str, str],
    *,
    on_gpu: bool,
) -> int:
    """Have DVC bring stages up to date, at most so many at once, each after those that it waits for; without a GPU they
    share this process's threads. Returns the first exit code that is not 0."""
    commands = {name: dvc_command(["--single-item", name]) for name in graph if name in chosen}
    variables = {**dvc_environment(), **environment}
    return run_at_once(commands, graph, at_once, variables, STAGE_STOP_S, share_threads=not on_gpu)
