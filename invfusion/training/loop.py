"""The training loop: a pure function of (seed, image count), so that a killed run continues as if nothing had happened.

A global batch of `batch_size` images is cut into micro-batches of `micro_batch_size`. The micro-batch that begins at
image count n draws everything (operator, noise levels, noise, augmentation, dropped labels, dropout) from generators
keyed by (seed, stream, n), and rank r of w takes every w-th micro-batch from the r-th on. So the number of processes
changes no loss.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from invfusion.data import Batch
from invfusion.errors import CheckpointError, DataError
from invfusion.models import Denoiser
from invfusion.models.acceleration import is_compiled
from invfusion.training import checkpoint
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.history import History
from invfusion.training.schedule import learning_rate
from invfusion.training.step import Stepper
from invfusion.training.task import Task

log = logging.getLogger(__name__)
LOG = "log.jsonl"


class Observer(Protocol):
    """What a caller may want to hear of a run; all calls come from rank 0."""

    def on_begin(self, nimg: int) -> None:
        """Training begins, or goes on, at this image count."""

    def on_log(self, entry: dict[str, float]) -> None:
        """Averages since the last call: nimg, loss, lr, grad_norm, images_per_second, and the loss's own parts."""

    def on_grid(self, averaged: Denoiser, nimg: int) -> None:
        """A good moment to draw what the averaged model can do."""


class SilentObserver:
    """Hears nothing."""

    def on_begin(self, nimg: int) -> None: ...
    def on_log(self, entry: dict[str, float]) -> None: ...
    def on_grid(self, averaged: Denoiser, nimg: int) -> None: ...


@dataclass
class Run:
    """The live state of a run. window: the numbers of the steps since the last log entry."""

    task: Task
    denoiser: Denoiser
    stepper: Stepper
    ema: EMA
    history: History
    folder: Path
    nimg: int = 0
    window: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the files."""
        return self.stepper.processes.rank == 0

    def averaged(self) -> Denoiser:
        """A copy of the denoiser with the averaged weights, in eval mode."""
        model = copy.deepcopy(self.denoiser)
        model.load_state_dict(self.ema.weights)
        return model.requires_grad_(False).eval()


class Stream(Protocol):
    """Images without end in micro-batches: a dataset's (`TrainingStream`), or draws of a known law.

    image_shape: (C, H, W); highest_label: of the classes, -1 without any.
    """

    @property
    def image_shape(self) -> tuple[int, ...]: ...
    @property
    def highest_label(self) -> int: ...
    @property
    def micro_batch_size(self) -> int: ...
    def iterate(self, start: int, end: int, step: int = 1, offset: int = 0) -> Iterator[Batch]:
        """Every micro-batch j = offset, offset + step, ... that begins in [start, end), j counting from `start`."""


def train(
    task: Task,
    denoiser: Denoiser,
    stream: Stream,
    folder: Path,
    *,
    device: torch.device,
    processes: Processes,
    n_draw_threads: int = 0,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Denoiser | None:
    """Train until `task.config.images` and return the averaged model; None where `should_stop` asked for an early end.

    The stream is in micro-batches of the task. `n_draw_threads` threads draw operators ahead, which changes no result.
    The state lies in `folder`, which all processes share; calling again with the same task continues from the newest
    sound checkpoint, with any number of processes.

    Raises:
        ConfigError, DataError: model, data and processes do not fit together.
        NonFiniteError: loss or gradients are not finite; names the image count and the samples' keys.
        CheckpointError: the state cannot be saved, or the processes do not share one state folder.
    """
    _check_fit(task, denoiser, stream, processes)
    run = _begin(task, denoiser, folder, device, processes, n_draw_threads)
    hears: Observer = observer if observer is not None and run.is_leader else SilentObserver()
    hears.on_begin(run.nimg)
    end = task.config.total_images
    batches = stream.iterate(run.nimg, end, step=processes.world_size, offset=processes.rank)
    clock = _Clock(run.nimg)
    with closing(run.stepper.draws):
        while run.nimg < end:
            before = run.nimg
            _advance(run, batches)
            stopped = processes.any(should_stop())
            _report(run, hears, clock, before)
            if stopped or run.nimg == end or _crossed(before, run.nimg, task.config.checkpoint_images):
                _save(run)
            if stopped and run.nimg < end:
                return None
    return run.averaged()


@dataclass
class _Clock:
    """Measures the speed since the beginning."""

    nimg: int
    started: float = field(default_factory=time.perf_counter)

    def images_per_second(self, nimg: int) -> float:
        return (nimg - self.nimg) / (time.perf_counter() - self.started)


def _crossed(before: int, after: int, interval: int) -> bool:
    return before // interval != after // interval


def _check_fit(task: Task, denoiser: Denoiser, stream: Stream, processes: Processes) -> None:
    task.config.check_sharing(processes.world_size)
    if stream.micro_batch_size != task.config.micro_batch_size:
        raise DataError(
            f"the stream comes in batches of {stream.micro_batch_size}, but the task in micro-batches of "
            f"{task.config.micro_batch_size}; make it with the task's micro_batch_size"
        )
    if stream.image_shape != denoiser.image_shape:
        raise DataError(
            f"the staged images have the shape {stream.image_shape}, but the model takes {denoiser.image_shape}; "
            "set data.image_size and the preset to match, and stage again"
        )
    if denoiser.n_classes and stream.highest_label >= denoiser.n_classes:
        raise DataError(
            f"the data has the class label {stream.highest_label}, but the model knows {denoiser.n_classes} classes; "
            "raise model.n_classes"
        )


def _begin(
    task: Task, denoiser: Denoiser, folder: Path, device: torch.device, processes: Processes, n_draw_threads: int
) -> Run:
    denoiser.to(device).train()
    run = Run(
        task=task,
        denoiser=denoiser,
        stepper=Stepper(task, denoiser, processes, device, n_draw_threads),
        ema=EMA(denoiser, task.config.ema_half_life, task.config.ema_rampup),
        history=History(folder / LOG),
        folder=folder,
    )
    if run.is_leader:
        checkpoint.prepare(folder, task.fingerprint, task.config.total_images, companions=(LOG,))
    processes.barrier()
    _resume(run)
    if processes.any(run.nimg != processes.from_first(run.nimg)):
        raise CheckpointError(
            f"{folder} does not look the same to all processes (this one finds {run.nimg} images there): put it on "
            "storage that all hosts of the run share"
        )
    if run.is_leader:
        run.history.truncate(run.nimg)
    return run


def _resume(run: Run) -> None:
    found = checkpoint.load_newest(run.folder)
    if found is None:
        return
    tensors, state = found
    run.denoiser.load_state_dict(checkpoint.under("model/", tensors))
    run.ema.load(checkpoint.under("ema/", tensors))
    run.stepper.restore(checkpoint.under("optimizer/", tensors), state["stepper"])
    run.nimg, run.window = state["nimg"], state["window"]
    log.info("continuing from %d images", run.nimg)
    before, now = ("compiled" if compiled else "eager" for compiled in (state["compiled"], is_compiled(run.denoiser)))
    if before != now:
        log.warning(
            "these images were trained %s, the rest is trained %s: equal up to rounding, not bit for bit; "
            "runtime.compile decides", before, now,
        )  # fmt: skip


def _advance(run: Run, batches: Iterator[Batch]) -> None:
    numbers = run.stepper.step(run.nimg, batches)
    run.nimg += run.task.config.batch_size
    run.ema.update(run.denoiser, run.nimg, run.task.config.batch_size)
    run.window.append(numbers)


def _report(run: Run, hears: Observer, clock: _Clock, before: int) -> None:
    config = run.task.config
    ends = run.nimg == config.total_images
    if ends or _crossed(before, run.nimg, config.log_images):
        entry = _summary(run, before) | {"images_per_second": clock.images_per_second(run.nimg)}
        run.window.clear()
        if run.is_leader:
            run.history.append(entry)
            hears.on_log(entry)
    if run.is_leader and (ends or _crossed(before, run.nimg, config.sample_grid_images)):
        hears.on_grid(run.averaged(), run.nimg)


def _summary(run: Run, before: int) -> dict[str, float]:
    """The averages of the window, with the learning rate of its last step."""
    config, window = run.task.config, run.window
    lr = learning_rate(before, config.lr, config.warmup_images, config.decay_start_images)
    averages = {name: _mean([numbers[name] for numbers in window]) for name in window[0]}
    return {"nimg": run.nimg, "loss": averages.pop("loss"), "lr": lr} | averages


def _mean(values: list[float]) -> float:
    """Of the finite values: with fp16, the gradient of a skipped step is infinite."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / max(len(finite), 1)


def _save(run: Run) -> None:
    if not run.is_leader:
        return
    tensors = {f"model/{name}": t for name, t in run.denoiser.state_dict().items()}
    tensors |= {f"ema/{name}": t for name, t in run.ema.weights.items()}
    tensors |= {f"optimizer/{name}": t for name, t in run.stepper.tensors().items()}
    state = {
        "nimg": run.nimg,
        "window": run.window,
        "stepper": run.stepper.scalars(),
        "compiled": is_compiled(run.denoiser),
    }
    checkpoint.save(run.folder, run.nimg, tensors, state | {"fingerprint": run.task.fingerprint})
