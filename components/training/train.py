"""Train one variant of the denoiser on the staged data, and publish its averaged weights.

`python -m components.training.train --variant invfusion` runs it without orchestration. For many GPUs or machines,
start that under torchrun, or set `runtime.processes` for those of one machine.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ruamel.yaml import YAML
from tqdm import tqdm

from components import tracking
from components.children import child
from components.code import code_digest
from components.device import n_processes, pick_device, threads_each
from components.params import Params, RuntimeConfig, load_params
from components.progress import Progress
from components.training.grids import restoration_grid
from invfusion.data import StagedDataset
from invfusion.errors import DataError, InvFusionError
from invfusion.models import (
    Denoiser,
    build_denoiser,
    checkpoint_activations,
    compile_network,
    save_denoiser,
    set_attention_backend,
)
from invfusion.training.config import OptimisationConfig, TrainedVariant
from invfusion.training.distributed import Processes, processes
from invfusion.training.history import History
from invfusion.training.lock import exclusive
from invfusion.training.loop import LOG
from invfusion.training.loop import train as run_training
from invfusion.training.task import Task

log = logging.getLogger(__name__)

STAGED = Path("artifacts/staged")
MODELS = Path("artifacts/models")
LOGS = Path("artifacts/logs")
STATE = Path("state/train")
# Launched processes may have to finish a batch and write a checkpoint.
STOP_S = 60

VARIANTS: tuple[str, ...] = tuple(name for part in get_args(TrainedVariant) for name in get_args(part))

# They change neither the weights nor what a run would go on to: a longer run continues a shorter one.
_NOT_DEFINING = {"images", "checkpoint_images", "log_images", "sample_grid_images"}
# The code that makes the weights what they are.
_CODE = ("invfusion.training.loop", "invfusion.training.unrolled")


def train(params: Params, variant: TrainedVariant) -> Path:
    """Train (or go on training) one variant; returns artifacts/models/<variant>.

    Raises:
        InvFusionError: data, parameters or services are wrong, before training starts; NonFiniteError during it.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, with a checkpoint written.
    """
    if must_launch(params):
        launch(params, variant, "components.training.train", ["--variant", variant])
        return MODELS / variant
    return run(params, variant, task_of(params, variant), denoiser_for(params, variant))


def task_of(params: Params, variant: TrainedVariant) -> Task:
    """What a model learns: to denoise (InDI: to go back to the image), and to restore unless it is unconditional."""
    degradation = None if variant == "unconditional" else params.degradation
    loss = params.train.indi if variant == "indi" else params.train.loss
    return Task(loss, degradation, params.noise, params.train, params.seed)


def denoiser_for(params: Params, variant: TrainedVariant) -> Denoiser:
    """The freshly initialised denoiser of one variant; that of InDI sees no measurement, which it starts from."""
    architecture = "unconditional" if variant == "indi" else variant
    return build_denoiser(params.denoiser_config(architecture), seed=params.seed)


@dataclass(frozen=True)
class Places:
    """Where a run leaves its model, its curve and its training state."""

    model: Path
    log: Path
    state: Path

    @classmethod
    def of(cls, name: str) -> "Places":
        """A model of the pipeline, whose stage names these places."""
        return cls(MODELS / name, LOGS / f"{name}.csv", STATE / name)

    @classmethod
    def under(cls, home: Path) -> "Places":
        """Any other model, in a folder of its own."""
        return cls(home / "model", home / "log.csv", STATE / home.name)


def run(params: Params, name: str, task: Task, denoiser: Denoiser, places: Places | None = None) -> Path:
    """Train a denoiser on a task and publish it; returns its folder, artifacts/models/<name> without other places."""
    places = places or Places.of(name)
    tracking.check_reachable(params)
    device = pick_device(params.runtime.device)
    dataset = StagedDataset(STAGED, "train")
    facts = facts_of(params, name, task, denoiser, dataset)
    task = replace(task, fingerprint=facts["fingerprint"])
    _accelerate(denoiser, params.runtime)
    stop, parent = _Stop(), os.getppid()
    with ExitStack() as stack:
        group = stack.enter_context(processes(device))
        if group.rank == 0:
            stack.enter_context(exclusive(places.state))
        stack.enter_context(_on_stop_signals(stop.ask))
        observer = stack.enter_context(_observer(params, name, task, dataset, group))
        model = run_training(
            task, denoiser, dataset, places.state,
            device=device, processes=group, n_workers=params.runtime.workers,
            n_draw_threads=params.runtime.draw_threads,
            observer=observer, should_stop=lambda: stop.signal is not None or _is_orphan(parent),
        )  # fmt: skip
        if model is None:
            log.warning("stopped with a checkpoint written; the same command continues")
            sys.exit(128 + (stop.signal or signal.SIGTERM))
        if group.rank == 0:
            _publish(model, places, facts | {"nimg": task.config.total_images})
    return places.model


def _accelerate(denoiser: Denoiser, runtime: RuntimeConfig) -> None:
    set_attention_backend(denoiser, runtime.attention_backend)
    checkpoint_activations(denoiser, runtime.activation_checkpointing)
    if runtime.compile:
        compile_network(denoiser)


def facts_of(params: Params, name: str, task: Task, denoiser: Denoiser, dataset: StagedDataset) -> dict[str, Any]:
    """What defines a trained model, with the fingerprint of all that its training state depends on."""
    defining = {
        "name": name,
        "data_digest": dataset.digest,
        "architecture": denoiser.config.model_dump(mode="json"),
        "initial_weights": _hash_weights(denoiser),
        "loss": task.loss.model_dump(mode="json"),
        "degradation": task.degradation.model_dump(mode="json") if task.degradation is not None else None,
        "noise": task.noise.model_dump(mode="json") if task.degradation is not None else None,
        "training": task.config.model_dump(mode="json", include=set(OptimisationConfig.model_fields) - _NOT_DEFINING),
        "seed": task.seed,
        "code": code_digest(*_CODE),
    }
    fingerprint = hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()
    return defining | {"data": params.data.name, "fingerprint": fingerprint}


def _hash_weights(denoiser: Denoiser) -> str:
    digest = hashlib.sha256()
    for tensor in denoiser.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _publish(model: Denoiser, places: Places, facts: dict[str, Any]) -> None:
    versions = {"git_revision": tracking.git_revision(), "packages": tracking.package_versions()}
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    save_denoiser(model, places.model, facts | versions | {"n_parameters": n_parameters})
    places.log.parent.mkdir(parents=True, exist_ok=True)
    with places.log.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["nimg", "loss", "lr", "grad_norm"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(History(places.state / LOG).entries())


# ---------------------------------------------------------------------------------------------------------------------
# Many processes on this machine.


def must_launch(params: Params) -> bool:
    """Whether this process should start others instead of training itself."""
    return "WORLD_SIZE" not in os.environ and n_processes(params) > 1


def launch(params: Params, name: str, module: str, arguments: Sequence[str]) -> None:
    """Run a component in several processes of this machine, through torchrun.

    Raises:
        InvFusionError: it failed; the reason stands in its own output.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, which the processes received too.
    """
    n = n_processes(params)
    params.train.check_sharing(n)
    (STATE / name).mkdir(parents=True, exist_ok=True)
    settings = STATE / name / "params.yaml"
    YAML(typ="safe", pure=True).dump(params.model_dump(mode="json", by_alias=True), settings)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command = [sys.executable, *torchrun, "-m", module, *arguments, "--params", str(settings)]
    threads = {"OMP_NUM_THREADS": str(threads_each(n))}
    # What this process holds, such as a lease of GPUs, the others hold too (close_fds).
    with child(command, os.environ | threads, STOP_S, close_fds=False) as started:
        stop = _Stop(pass_on=started.send_signal)
        with _on_stop_signals(stop.ask):
            code = started.wait()
    if stop.signal is not None:
        sys.exit(128 + stop.signal)
    if code:
        raise InvFusionError(f"{module} stopped with exit code {code}; its own message stands above")


def command_line(description: str | None, option: str, choices: Sequence[str], component: Callable[..., Path]) -> None:
    """The command line of a component that trains something: one choice, and the params file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(f"--{option}", required=True, choices=choices, dest="choice")
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    try:
        component(load_params(arguments.params), arguments.choice)
    except InvFusionError as error:
        sys.exit(f"error: {error}")


# ---------------------------------------------------------------------------------------------------------------------
# Signals and progress.


@dataclass
class _Stop:
    """The first signal asks for a clean end; a second one of the same kind does not wait for it."""

    signal: int | None = None
    pass_on: Callable[[int], None] | None = None

    def ask(self, number: int) -> None:
        if self.signal == number:
            sys.exit(128 + number)
        self.signal = number
        if self.pass_on is not None:
            self.pass_on(number)


def _is_orphan(parent: int) -> bool:
    """Whether the torchrun that started this process is gone; then nobody waits for the result."""
    return "WORLD_SIZE" in os.environ and os.getppid() != parent


@contextmanager
def _on_stop_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into a request; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda received, _frame: ask(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Observer:
    """Shows progress, and sends the curve and sample grids to the tracker."""

    def __init__(self, bar: Any, progress: Progress, sink: tracking.Run, shown: StagedDataset, task: Task) -> None:
        self.bar, self.progress, self.sink, self.shown, self.task = bar, progress, sink, shown, task

    def on_begin(self, nimg: int) -> None:
        self.bar.initial = self.bar.last_print_n = self.bar.n = nimg
        self.progress.begin(nimg)

    def on_log(self, entry: dict[str, float]) -> None:
        self.bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
        self.bar.update(int(entry["nimg"]) - self.bar.n)
        self.progress.advance(int(entry["nimg"]), loss=entry["loss"])
        self.sink.log_metrics({key: value for key, value in entry.items() if key != "nimg"}, int(entry["nimg"]))

    def on_grid(self, averaged: Denoiser, nimg: int) -> None:
        picture = restoration_grid(self.shown, self.task, averaged)
        self.progress.show(picture)
        self.sink.log_image("samples", picture, nimg)


def _shown_in_grids(training: StagedDataset) -> StagedDataset:
    """Validation images; training images where the dataset has no others."""
    try:
        return StagedDataset(STAGED, "val")
    except DataError:
        return training


@contextmanager
def _observer(
    params: Params, name: str, task: Task, dataset: StagedDataset, group: Processes
) -> Iterator[_Observer | None]:
    if group.rank != 0:
        yield None
        return
    shown = _shown_in_grids(dataset)
    with (
        tracking.start_run(params, "train", name) as sink,
        tqdm(total=task.config.total_images, desc=name, unit="img", mininterval=2, smoothing=0.1) as bar,
    ):
        sink.log_dataset(params.data.name, dataset.digest, str(params.data.shards))
        yield _Observer(bar, Progress(name, task.config.total_images, "images"), sink, shown, task)


if __name__ == "__main__":
    command_line(__doc__, "variant", VARIANTS, train)
