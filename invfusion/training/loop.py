"""The training loop: a pure function of (seed, image count), so that a killed run continues as if nothing had happened.

A global batch of `batch_size` images is cut into micro-batches of `micro_batch_size`. Micro-batch j of the step at image
count n draws everything (operator, noise levels, noise, augmentation, dropped labels) from generators keyed by
(seed, stream, n + j * micro_batch_size), and rank r takes the micro-batches j with j % world == r. So the number of
processes changes no loss.
"""

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from invfusion import codec
from invfusion.data import Batch, StagedDataset, TrainingStream
from invfusion.degradations import DegradationFamily, MixtureConfig
from invfusion.diffusion.losses import DiffusionLoss, LossOutput, MMSELoss, NPPCLoss
from invfusion.errors import ConfigError, NonFiniteError
from invfusion.models import Denoiser
from invfusion.operators.base import Measurement
from invfusion.rng import generator
from invfusion.training import checkpoint
from invfusion.training.augment import augment
from invfusion.training.config import OptimisationConfig
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.schedule import learning_rate

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Loss = DiffusionLoss | MMSELoss | NPPCLoss


class Observer(Protocol):
    """What a caller may want to hear of a run; all calls come from rank 0."""

    def on_log(self, entry: dict[str, float]) -> None: ...
    def on_grid(self, ema: Denoiser, nimg: int) -> None: ...


class SilentObserver:
    """Hears nothing."""

    def on_log(self, entry: dict[str, float]) -> None: ...
    def on_grid(self, ema: Denoiser, nimg: int) -> None: ...


@dataclass(frozen=True)
class Task:
    """What one run trains. `fingerprint` names everything that defines it: state of another one is not continued."""

    loss: Loss
    degradation: DegradationFamily | MixtureConfig | None
    sigma_y: tuple[float, float]
    config: OptimisationConfig
    seed: int
    fingerprint: str


@dataclass
class Run:
    """The live state of a run."""

    task: Task
    denoiser: Denoiser
    ema: EMA
    optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler
    stream: TrainingStream
    processes: Processes
    device: torch.device
    nimg: int = 0
    window: list[float] = field(default_factory=list)


def draw_measurement(task: Task, x: Tensor, index: int) -> Measurement | None:
    """The measurement of a micro-batch that begins at image count `index`; None for unconditional training."""
    if task.degradation is None:
        return None
    draws = generator(task.seed, "train/operator", index)
    operator = task.degradation.sample(batch_size=len(x), image_shape=tuple(x.shape[1:]), generator=draws).to(x.device)
    noise_draws = generator(task.seed, "train/measurement-noise", index)
    low, high = task.sigma_y
    sigma_y = low + (high - low) * torch.rand(len(x), generator=noise_draws)
    noise = torch.randn((len(x), *operator.measurement_shape), generator=noise_draws) if high > 0 else None
    return Measurement.of(x, operator, sigma_y.to(x.device), None if noise is None else noise.to(x.device))


def micro_batch_loss(task: Task, model: nn.Module, batch: Batch, index: int, device: torch.device) -> LossOutput:
    """The loss of the micro-batch that begins at image count `index`: a pure function of (seed, index, weights)."""
    images = codec.decode(batch.images).to(device)
    x, augment_labels = augment(images, task.config.augment_probability, generator(task.seed, "train/augment", index))
    return task.loss(
        model,
        x,
        draw_measurement(task, x, index),
        generator=generator(task.seed, "train/noise", index),
        class_labels=_class_labels(task, model, batch, index, device),
        augment_labels=augment_labels,
    )


def _class_labels(task: Task, model: nn.Module, batch: Batch, index: int, device: torch.device) -> Tensor | None:
    n_classes = getattr(model, "module", model).n_classes
    if n_classes == 0:
        return None
    draws = torch.rand(len(batch), generator=generator(task.seed, "train/label-dropout", index))
    dropped = (draws < task.config.label_dropout) | (batch.labels < 0)
    return batch.labels.where(~dropped, n_classes).to(device)


def train(
    task: Task,
    denoiser: Denoiser,
    dataset: StagedDataset,
    folder: Path,
    *,
    device: torch.device,
    processes: Processes,
    n_workers: int = 0,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Denoiser | None:
    """Train until `task.config.images` and return the averaged model; None where `should_stop` asked for an early end.

    The state lies in `folder`; calling again with the same task continues from the newest sound checkpoint.

    Raises:
        NonFiniteError: loss or gradients are not finite; names the image count and the samples' keys.
        CheckpointError: the state cannot be saved.
    """
    run = _begin(task, denoiser, dataset, folder, device, processes, n_workers)
    hears = observer if observer is not None and processes.rank == 0 else SilentObserver()
    model = processes.wrap(denoiser)
    config = task.config
    batches = run.stream.iterate(run.nimg, config.images, step=processes.world_size, offset=processes.rank)
    started, first = time.perf_counter(), run.nimg
    while run.nimg < config.images:
        before = run.nimg
        loss = _step(run, model, batches)
        run.nimg += config.batch_size
        run.window.append(loss)
        if _crossed(before, run.nimg, config.log_images):
            rate = (run.nimg - first) / (time.perf_counter() - started)
            _log(run, folder, rate, hears)
        if _crossed(before, run.nimg, config.sample_grid_images) and processes.rank == 0:
            hears.on_grid(averaged(run), run.nimg)
        stop = processes.any(should_stop())
        if stop or _crossed(before, run.nimg, config.checkpoint_images) or run.nimg >= config.images:
            _save(run, folder)
        if stop and run.nimg < config.images:
            return None
    return averaged(run)


def _crossed(before: int, after: int, interval: int) -> bool:
    return before // interval != after // interval


def _begin(
    task: Task, denoiser: Denoiser, dataset: StagedDataset, folder: Path, device: torch.device, processes: Processes,
    n_workers: int,
) -> Run:  # fmt: skip
    config = task.config
    denoiser.to(device).train()
    run = Run(
        task=task,
        denoiser=denoiser,
        ema=EMA(denoiser, config.ema_half_life, config.ema_rampup),
        optimizer=torch.optim.Adam(denoiser.parameters(), lr=config.lr, betas=config.betas, eps=1e-8, fused=True),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        stream=TrainingStream(dataset, task.seed, config.micro_batch_size, n_workers),
        processes=processes,
        device=device,
    )
    _resume(run, folder)
    if processes.rank == 0:
        _truncate_log(folder / "log.jsonl", run.nimg)
    return run


def _step(run: Run, model: nn.Module, batches: Iterator[Batch]) -> float:
    """One optimiser step; returns the loss averaged over the global batch."""
    config, processes = run.task.config, run.processes
    n_micro = config.batch_size // config.micro_batch_size
    mine = range(processes.rank, n_micro, processes.world_size)
    total = torch.zeros((), device=run.device)
    keys: list[str] = []
    for j in mine:
        batch = next(batches)
        keys += batch.keys
        with processes.sync(model, last=j == mine[-1]), torch.autocast(
            run.device.type, DTYPES[config.precision], enabled=config.precision != "fp32"
        ):
            output = micro_batch_loss(run.task, model, batch, run.nimg + j * config.micro_batch_size, run.device)
            loss = output.per_sample.float().mean() / n_micro
        # DDP averages gradients over processes; the loss is a mean over the global batch.
        run.scaler.scale(loss * processes.world_size).backward()
        total += loss.detach()
    value = float(processes.sum(total))
    _update(run, value, keys)
    return value


def _update(run: Run, loss: float, keys: list[str]) -> None:
    config = run.task.config
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.nimg, config.lr, config.warmup_images, config.decay_start_images)
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.get_total_norm(p.grad for p in run.denoiser.parameters() if p.grad is not None)
    finite = math.isfinite(loss) and (run.scaler.is_enabled() or bool(torch.isfinite(norm)))
    if not finite:
        raise NonFiniteError(
            f"loss {loss} or gradient norm {float(norm)} is not finite after {run.nimg} images, in the batch with the samples "
            f"{', '.join(keys)}; lower train.lr, or look at these samples. The last checkpoint is intact"
        )
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.ema.update(run.denoiser, run.nimg + config.batch_size, config.batch_size)


def averaged(run: Run) -> Denoiser:
    """A copy of the denoiser with the averaged weights, in eval mode on the CPU."""
    model = Denoiser(run.denoiser.config)
    model.load_state_dict({name: t.cpu() for name, t in run.ema.weights.items()})
    return model.eval()


def _log(run: Run, folder: Path, rate: float, hears: Observer) -> None:
    config = run.task.config
    lr = learning_rate(run.nimg, config.lr, config.warmup_images, config.decay_start_images)
    entry = {"nimg": run.nimg, "loss": sum(run.window) / len(run.window), "lr": lr, "images_per_second": rate}
    run.window.clear()
    if run.processes.rank == 0:
        with (folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        hears.on_log(entry)


def _save(run: Run, folder: Path) -> None:
    if run.processes.rank != 0:
        return
    tensors = {f"model/{name}": t for name, t in run.denoiser.state_dict().items()}
    tensors |= {f"ema/{name}": t for name, t in run.ema.weights.items()}
    for index, moments in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": t for name, t in moments.items()}
    state = {
        "nimg": run.nimg,
        "fingerprint": run.task.fingerprint,
        "scaler": run.scaler.state_dict(),
        "window": run.window,
    }
    checkpoint.save(folder, run.nimg, tensors, state)


def _resume(run: Run, folder: Path) -> None:
    found = checkpoint.load_newest(folder)
    if found is None:
        return
    tensors, state = found
    if state["fingerprint"] != run.task.fingerprint:
        log.info("%s holds the state of other parameters or data: starting afresh", folder)
        checkpoint.discard(folder)
        return
    run.denoiser.load_state_dict(_under("model/", tensors))
    run.ema.weights = {name: t.to(run.device) for name, t in _under("ema/", tensors).items()}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under("optimizer/", tensors).items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = tensor.clone()
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    run.scaler.load_state_dict(state["scaler"])
    run.nimg, run.window = state["nimg"], state["window"]
    log.info("continuing from %d images", run.nimg)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # Fresh memory: tensors mapped from a file may be unaligned, which changes the last bits of matrix products.
    return {name.removeprefix(prefix): t.clone() for name, t in tensors.items() if name.startswith(prefix)}


def _truncate_log(path: Path, nimg: int) -> None:
    """Drop what was logged after the checkpoint, so that the log reads like that of an uninterrupted run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    if path.exists():
        with contextlib.suppress(json.JSONDecodeError):
            for line in path.read_text().splitlines():
                entries.append(json.loads(line))
    path.write_text("".join(json.dumps(e) + "\n" for e in entries if e["nimg"] <= nimg and nimg > 0))
