"""Train one model on the staged data, from fresh weights or from another model, and publish its averaged weights.

`python -m components.training.train --model invfusion` runs it without orchestration. For many GPUs or machines,
start that under torchrun, or set `runtime.processes` for those of one machine.
"""

import csv
import hashlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from torch import Tensor
from tqdm import tqdm

from components import cli, tracking
from components.checkpoints import file_digests
from components.children import child, on_stop_signals
from components.code import code_digest
from components.data.prior import staged_prior
from components.device import n_processes, pick_device, threads_each
from components.params import Params, RuntimeConfig
from components.paths import LOGS, MODELS, STAGED
from components.progress import Progress
from components.training import identity
from components.training.grids import SAMPLER, restoration_grid
from invfusion.data import StagedDataset, TrainingStream
from invfusion.errors import DataError, InvFusionError
from invfusion.files import replacing
from invfusion.gaussian import GaussianPrior
from invfusion.models import (
    Denoiser,
    compile_denoiser,
    compiles,
    keep_within,
    load_denoiser,
    save_denoiser,
    set_attention_backend,
)
from invfusion.models.acceleration import TRAINING_PASSES
from invfusion.models.activations import GIB, TRAINING_BYTES, USABLE
from invfusion.samplers import Sampler
from invfusion.training.config import OptimisationConfig
from invfusion.training.distributed import Processes, processes
from invfusion.training.history import History
from invfusion.training.lock import exclusive
from invfusion.training.loop import LOG
from invfusion.training.loop import train as run_training
from invfusion.training.recipes import RECIPES, Distillation
from invfusion.training.step import DTYPES
from invfusion.training.task import Task

log = logging.getLogger(__name__)

STATE = Path("state/train")
# Of a parameter, where processes share its gradient.
BUCKET_BYTES = 4
# Launched processes may have to finish a batch and write a checkpoint.
STOP_S = 60

# The columns of a curve.
CURVE = ("nimg", "loss", "lr", "grad_norm")

# They change neither the weights nor what a run would go on to: a longer run continues a shorter one.
_NOT_DEFINING = {"images", "checkpoint_images", "log_images", "sample_grid_images"}


def train(params: Params, name: str) -> Path:
    """Train (or go on training) the model of one recipe; returns artifacts/models/<name>.

    Raises:
        CheckpointError: the model to start from has not been trained.
        InvFusionError: data, parameters or services are wrong, before training starts; NonFiniteError during it.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, with a checkpoint written.
    """
    if must_launch(params):
        launch(params, name, "components.training.train", ["--model", name])
        return MODELS / name
    return run(params, name, network(params, name))


def network(params: Params, name: str, start: Path | None = None, prior: GaussianPrior | None = None) -> Denoiser:
    """The network before training. start: the folder of the model that it starts from; None: the pipeline's. prior: in
    place of the one that was staged with the images."""
    recipe, before = params.recipe(name), params.starts_from(name)
    if before is None:
        config = params.architecture(name)
        if config.preconditioning == "gaussian" and prior is None:
            prior = staged_prior(STAGED)
        return recipe.network(config, params.seed, prior if config.preconditioning == "gaussian" else None)
    assert isinstance(recipe, Distillation), name
    return recipe.network_from(load_denoiser(start or MODELS / before), params.seed)


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


def run(params: Params, name: str, denoiser: Denoiser, places: Places | None = None, start: Path | None = None) -> Path:
    """Train a network by a recipe and publish it; returns its folder, artifacts/models/<name> without other places.
    start: as for `network`."""
    places = places or Places.of(name)
    tracking.check_reachable(params)
    device = pick_device(params.runtime.device)
    dataset = StagedDataset(STAGED, "train")
    facts = facts_of(params, name, denoiser, dataset, start)
    task = replace(params.task(name), fingerprint=facts["fingerprint"])
    _accelerate(denoiser, params.runtime, device, task.config, getattr(params.recipe(name), "n_steps", 1))
    stop, parent = _Stop(), os.getppid()
    with ExitStack() as stack:
        group = stack.enter_context(processes(device))
        if group.rank == 0:
            stack.enter_context(exclusive(places.state))
        stack.enter_context(on_stop_signals(stop.ask))
        observer = stack.enter_context(_observer(params, name, places.state.name, task, dataset, group))
        stream = TrainingStream(dataset, task.seed, task.config.micro_batch_size, params.runtime.workers)
        model = run_training(
            task, denoiser, stream, places.state, device=device, processes=group,
            n_draw_threads=params.runtime.draw_threads,
            observer=observer, should_stop=lambda: stop.signal is not None or _is_orphan(parent),
        )  # fmt: skip
        if model is None:
            log.warning("stopped with a checkpoint written; the same command continues")
            sys.exit(128 + (stop.signal or signal.SIGTERM))
        if group.rank == 0:
            _publish(model, places, facts | {"nimg": task.config.total_images})
    return places.model


def _accelerate(
    denoiser: Denoiser, runtime: RuntimeConfig, device: torch.device, config: OptimisationConfig, n_calls: int
) -> None:
    """n_calls: of the network in one step, all of which the backward pass goes through."""
    set_attention_backend(denoiser, runtime.attention_backend)
    compiled = compiles(runtime.compile, device, TRAINING_PASSES * config.total_images)
    budget, by_layers = _activation_budget(denoiser, runtime, device), compiled and device.type == "cuda"
    keep_within(denoiser, config.micro_batch_size, budget, DTYPES[config.precision], n_calls, by_layers)
    if compiled:
        compile_denoiser(denoiser, device)


def _activation_budget(denoiser: Denoiser, runtime: RuntimeConfig, device: torch.device) -> float:
    """Bytes that may be kept for the backward pass: as configured, or what is free of a GPU beside weights and moments;
    without one there is no limit."""
    if runtime.activation_budget != "auto":
        return runtime.activation_budget * GIB
    if device.type != "cuda":
        return math.inf
    # What a training before this one in the process has left behind.
    torch.cuda.empty_cache()
    each = TRAINING_BYTES + (BUCKET_BYTES if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0)
    return USABLE * torch.cuda.mem_get_info(device)[0] - each * sum(p.numel() for p in denoiser.parameters())


def facts_of(
    params: Params, name: str, denoiser: Denoiser, dataset: StagedDataset, start: Path | None = None
) -> dict[str, Any]:
    """What defines a trained model, with the fingerprint of all that its training state depends on.

    Fresh weights, all or those that a model adds to what it starts from, follow from seed and architecture and are told
    by these: their last bits differ between processors, and a model that was trained on another machine is still the
    one that is asked for. start: as for `network`.
    """
    before = params.starts_from(name)
    if denoiser.prior is not None:
        denoiser.prior.check_fits(dataset.image_shape, dataset.digest)
    chosen = identity.settings(params.task(name))
    defining = chosen | {
        "name": name,
        "data_digest": dataset.digest,
        "architecture": denoiser.config.model_dump(mode="json"),
        "start": None if before is None else file_digests(start or MODELS / before),
        "prior": None if denoiser.prior is None else _digest(denoiser.prior.tensors()),
        "training": {key: value for key, value in chosen["training"].items() if key not in _NOT_DEFINING},
        "code": code_digest(*identity.entry_points(params, name)),
    }
    fingerprint = hashlib.sha256(json.dumps(defining, sort_keys=True).encode()).hexdigest()
    return defining | {"data": params.data.name, "fingerprint": fingerprint}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _publish(model: Denoiser, places: Places, facts: dict[str, Any]) -> None:
    versions = {"git_revision": tracking.git_revision(), "packages": tracking.package_versions()}
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    save_denoiser(model, places.model, facts | versions | {"n_parameters": n_parameters})
    places.log.parent.mkdir(parents=True, exist_ok=True)
    with places.log.open("w", newline="") as file:
        writer = csv.DictWriter(file, CURVE, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(History(places.state / LOG).entries())


# ---------------------------------------------------------------------------------------------------------------------
# Many processes on this machine.


def must_launch(params: Params) -> bool:
    """Whether this process should start others instead of training itself."""
    return "WORLD_SIZE" not in os.environ and n_processes(params) > 1


def words_for(module: str, arguments: Sequence[str], params: Params, name: str) -> list[str]:
    """What Python, or torchrun, is told to run a component with these parameters, which are written for a training of
    this name."""
    settings = STATE / name / "params.yaml"
    with replacing(settings) as partial:
        YAML(typ="safe", pure=True).dump(params.model_dump(mode="json", by_alias=True), partial)
    return ["-m", module, *arguments, "--params", str(settings)]


def launch(params: Params, name: str, module: str, arguments: Sequence[str]) -> None:
    """Run a component in several processes of this machine, through torchrun.

    Raises:
        InvFusionError: it failed; the reason stands in its own output.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, which the processes received too.
    """
    n = n_processes(params)
    params.train.check_sharing(n)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command = [sys.executable, *torchrun, *words_for(module, arguments, params, name)]
    threads = {"OMP_NUM_THREADS": str(threads_each(n))}
    # What this process holds, such as a lease of GPUs, the others hold too (close_fds).
    stop = _Stop()
    # Signals are minded before there is a child: one that comes as it starts must reach it, and not end this process.
    with on_stop_signals(stop.ask), child(command, os.environ | threads, STOP_S, close_fds=False) as started:
        stop.pass_to(started.send_signal)
        code = started.wait()
    if stop.signal is not None:
        sys.exit(128 + stop.signal)
    if code:
        raise InvFusionError(f"{module} stopped with exit code {code}; its own message stands above")


def main() -> None:
    """Train one model."""
    command = cli.parser(__doc__)
    command.add_argument("--model", required=True, choices=RECIPES)
    with cli.started(command, quiet=os.environ.get("RANK", "0") != "0") as options:
        train(options.params, options.model)


# ---------------------------------------------------------------------------------------------------------------------
# Signals and progress.


@dataclass
class _Stop:
    """The first signal asks for a clean end; a second one of the same kind does not wait for it."""

    signal: int | None = None
    pass_on: Callable[[int], None] | None = None
    is_passed: bool = False

    def ask(self, number: int) -> None:
        if self.signal == number:
            sys.exit(128 + number)
        self.signal = number
        if self.pass_on is not None:
            self.is_passed = True
            self.pass_on(number)

    def pass_to(self, receiver: Callable[[int], None]) -> None:
        """From now on it is told of each signal, and at once of one that came before."""
        self.pass_on = receiver
        if self.signal is not None and not self.is_passed:
            receiver(self.signal)


def _is_orphan(parent: int) -> bool:
    """Whether the torchrun that started this process is gone; then nobody waits for the result."""
    return "WORLD_SIZE" in os.environ and os.getppid() != parent


class _Observer:
    """Shows progress, and sends the curve and sample grids to the tracker."""

    def __init__(
        self, bar: Any, progress: Progress, sink: tracking.Run, shown: StagedDataset, task: Task, sampler: Sampler
    ) -> None:
        self.bar, self.progress, self.sink, self.shown, self.task = bar, progress, sink, shown, task
        self.sampler = sampler

    def on_begin(self, nimg: int) -> None:
        self.bar.initial = self.bar.last_print_n = self.bar.n = nimg
        self.progress.begin(nimg)

    def on_log(self, entry: dict[str, float]) -> None:
        self.bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
        self.bar.update(int(entry["nimg"]) - self.bar.n)
        self.progress.advance(int(entry["nimg"]), loss=entry["loss"])
        self.sink.log_metrics({key: value for key, value in entry.items() if key != "nimg"}, int(entry["nimg"]))

    def on_grid(self, averaged: Denoiser, nimg: int) -> None:
        picture = restoration_grid(self.shown, self.task, averaged, self.sampler)
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
    params: Params, name: str, label: str, task: Task, dataset: StagedDataset, group: Processes
) -> Iterator[_Observer | None]:
    """label: names this training among those that run beside it, which may be of the same recipe."""
    if group.rank != 0:
        yield None
        return
    shown = _shown_in_grids(dataset)
    with (
        tracking.start_run(params, "train", label) as sink,
        tqdm(total=task.config.total_images, desc=label, unit="img", mininterval=2, smoothing=0.1) as bar,
    ):
        sink.log_dataset(params.data.name, dataset.digest, str(params.data.shards))
        if task.degradation is not None:
            sink.log_params({"noise": task.noise.model_dump(mode="json")})
        sampler = SAMPLER.validate_python(params.recipe(name).reads_out)
        yield _Observer(bar, Progress(label, task.config.total_images, "images"), sink, shown, task, sampler)


if __name__ == "__main__":
    main()
