"""What a profile takes, before any of it is run: time, memory and disk of every stage, and what does not fit.

FLOPs are counted in closed form (`invfusion.models.flops`); a machine's speed is measured by a small training step, or
is that of a named GPU at the share of its peak that the paper's own trainings reached. Sampling costs are the calls of
each method's sampler, counted with a stand-in for the network.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from components.evaluation.methods import Column, Method, columns
from components.params import Params
from components.reporting.experiments import Experiment, Model
from invfusion.degradations import FAMILIES, DegradationFamily, Mixture
from invfusion.errors import ConfigError
from invfusion.measuring import NOISELESS, draw_operator, measure_batch
from invfusion.models import DenoiserConfig
from invfusion.models.flops import activation_numbers, forward_flops
from invfusion.operators import Measurement
from invfusion.rng import generators, randn
from invfusion.samplers import Sampler

GIB = 2**30
# A backward pass costs two forward ones.
BACKWARD = 3
# float32 weights and gradients, Adam's two moments, and the moving average.
TRAINING_BYTES = 20
# Of a training state on disk: weights, moments, average; the former one lies there until the new one is complete.
STATE_BYTES = 2 * 16
TOO_LONG_DAYS = 30.0
# The paper trains FFHQ64 (2^25 images of 244 GFLOP) in about a day on 8 A40, whose peak in fp16 is 150 TFLOP/s.
UTILISATION = 0.08


@dataclass(frozen=True)
class Machine:
    """flops: per second that it reaches; memory, disk: bytes that are there."""

    name: str
    flops: float
    memory: float
    disk: float

    @classmethod
    def named(cls, name: str) -> "Machine":
        """One GPU of GPUS, with this machine's disk."""
        peak, gigabytes = GPUS[name]
        return cls(name, peak * UTILISATION, gigabytes * 1e9, shutil.disk_usage(".").free)

    @classmethod
    def this(cls, flops: float, device: torch.device) -> "Machine":
        """The one that this runs on, at a measured speed."""
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            return cls(torch.cuda.get_device_name(device), flops, memory, shutil.disk_usage(".").free)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls("this machine's CPU", flops, memory, shutil.disk_usage(".").free)


# Peak FLOP/s of dense products in 16 bits, and GB of memory, as their makers state them.
GPUS = {"a40": (149.7e12, 48.0), "a100": (312e12, 80.0), "h100": (989e12, 80.0)}


@dataclass(frozen=True)
class Step:
    """A small training step of a network: the bytes that are kept of one image for the backward pass."""

    config: DenoiserConfig
    activation_bytes: float

    def kept(self, config: DenoiserConfig) -> float:
        """The same of another network, in float32: as many more bytes as it has more arithmetic."""
        return self.activation_bytes * forward_flops(config) / forward_flops(self.config)


# The parameters of a model, by the parameters of its experiment and its recipe's name.
Count = Callable[[Params, str], int]


@dataclass(frozen=True)
class Line:
    """What one stage, or one method of it, takes. calls: network calls per image, where images are restored."""

    stage: str
    what: str
    flops: float
    cpu_seconds: float
    memory: float
    disk: float
    calls: int | None = None

    def seconds(self, machine: Machine) -> float:
        """With operators drawn in the background, the slower of both decides."""
        return max(self.flops / machine.flops, self.cpu_seconds)

    def problems(self, machine: Machine) -> list[str]:
        """Why it does not fit."""
        found = []
        if self.memory > machine.memory:
            found.append(f"{self.memory / GIB:.0f} GiB of memory, {machine.memory / GIB:.0f} are there")
        if (days := self.seconds(machine) / 86_400) > TOO_LONG_DAYS:
            found.append(f"{days:.0f} days")
        return found


def account(params: Params, sizes: dict[str, int], step: Step) -> list[Line]:
    """All stages of a profile; sizes: parameters of each model with fresh weights."""
    known = {**sizes, **{name: sizes[start] for name, start in params.train.distilled.items()}}
    configs = {name: _config(params, name) for name in known}
    lines = [_training(params, name, configs[name], known[name], step) for name in params.models]
    plan = columns(params, params.models)
    return [*lines, *evaluation(params, plan, configs, known, step)]


def of_experiment(experiment: Experiment, params: Params, count: Count, step: Step) -> list[Line]:
    """All trainings and restorations of a table or figure, without the rows whose model cannot be made.

    params: as it changes them.
    """
    trained: dict[str, tuple[str, Params]] = {}
    for model in dict.fromkeys(method.model for method in params.methods.values() if method.model):
        with contextlib.suppress(ConfigError):
            spec = experiment.models.get(model) or Model(train=model)
            trained[model] = spec.train, experiment.changed_for(model, params)
    plan = [column for column in columns(params, trained) if column.kind in experiment.families]
    for name, changed in list(trained.values()):
        while (before := changed.starts_from(name)) is not None:
            name = before
            trained.setdefault(name, (name, changed))
    configs = {model: _config(changed, name) for model, (name, changed) in trained.items()}
    sizes = {model: count(changed, name) for model, (name, changed) in trained.items()}
    trainings = [
        replace(_training(changed, name, configs[model], sizes[model], step), what=model)
        for model, (name, changed) in trained.items()
    ]
    return [*trainings, *evaluation(params, plan, configs, sizes, step)]


def evaluation(
    params: Params, plan: Sequence[Column], configs: dict[str, DenoiserConfig], sizes: dict[str, int], step: Step
) -> Iterator[Line]:
    """Every method on every family. Models stay in memory once they were used."""
    weights = 4.0 * sum(sizes[name] for name in {m.model for c in plan for m in c.methods if m.model})
    for column in plan:
        n, (draw_seconds, n_measured) = _n_images(params, column), _drawn(params, column.family)
        values = 4.0 * n * (n_measured + 1)
        # Kept in the evaluation's output, and in DVC's cache.
        yield Line("evaluate", f"{column.kind}: measurements", 0, n * draw_seconds, 0, 2 * values)
        for method in column.methods:
            repeated = min(n, max(params.report.gallery_images, params.evaluate.calibration_images))
            images = n + repeated * method.extra_draws
            config = configs.get(method.model or "")
            memory = weights + params.evaluate.batch_size * _working(method, config, step)
            yield _restoring(params, column, method, config, images, draw_seconds, memory)


def _working(method: Method, config: DenoiserConfig | None, step: Step) -> float:
    """Bytes for one image while it is restored: what a backward pass needs is kept where a method differentiates."""
    if config is None:
        return 0.0
    return step.kept(config) if _differentiates(method) else 4.0 * activation_numbers(config)


def _differentiates(method: Method) -> bool:
    return method.sampler is not None and "grad" in method.sampler.requires


def _restoring(
    params: Params, column: Column, method: Method, config: DenoiserConfig | None, images: int, draw: float,
    memory: float,
) -> Line:  # fmt: skip
    calls = 0 if method.sampler is None or config is None else calls_of(params, method.sampler, config)
    passes = calls * (BACKWARD if _differentiates(method) else 1)
    flops = 0.0 if config is None else images * passes * forward_flops(config)
    projected = method.is_generative and column.family is not None and params.evaluate.noise.is_absent
    pixels = params.data.channels * params.data.image_size**2
    return Line(
        "evaluate", f"{column.kind}: {method.name}", flops, images * draw, memory,
        images * pixels * (2 if projected else 1), calls,
    )  # fmt: skip


def calls_of(params: Params, sampler: Sampler, config: DenoiserConfig) -> int:
    """Network calls per image, as a stand-in for the network counts them on images of 8 pixels."""
    guided = params.evaluate.guidance != 1 and config.n_classes > 0 and "components" not in sampler.requires
    return _counted(sampler, params.data.channels) * (2 if guided else 1)


@cache
def _counted(sampler: Sampler, channels: int) -> int:
    shape = (channels, 8, 8)
    x = randn(shape, generators(0, "account/x", range(1)))
    measurement = measure_batch(x, FAMILIES["box_inpainting"](), NOISELESS, 0, 0)
    return sampler.sample(_StandIn(), measurement, seed=0).nfe


class _StandIn:
    """The denoiser of white images, as samplers ask for one."""

    config = SimpleNamespace(n_components=1)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,  # noqa: ARG002
        class_labels: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        return x * (0.25 / (0.25 + sigma.square())).view(-1, 1, 1, 1)

    def components(self, x: Tensor, sigma: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        """The estimate, and one direction."""
        return self(x, sigma), x[:, None]


def _training(params: Params, name: str, config: DenoiserConfig, size: int, step: Step) -> Line:
    task = params.task(name)
    images, forward = task.config.total_images, forward_flops(config)
    recipe = params.recipe(name)
    n_calls = getattr(recipe, "n_steps", 1)
    if params.runtime.activation_checkpointing:
        forward = forward * 4 // 3
    seconds = 0.0
    if task.degradation is not None:
        members = list(families(task.degradation))
        weights = getattr(task.degradation, "weights", None) or [1.0] * len(members)
        drawn = [_drawn(params, family)[0] for family in members]
        per_image = sum(w * s for w, s in zip(weights, drawn, strict=True)) / sum(weights)
        seconds = images * per_image / max(params.runtime.draw_threads, 1)
    kept = step.kept(config) * n_calls
    if task.config.precision != "fp32":
        kept /= 2
    return Line(
        stage="distill" if name in params.train.distilled else "train",
        what=name,
        flops=images * (BACKWARD * forward * n_calls + recipe.target_calls * forward_flops(config)),
        cpu_seconds=seconds,
        memory=TRAINING_BYTES * size + task.config.micro_batch_size * kept,
        # The model's folder lies in DVC's cache too.
        disk=STATE_BYTES * size + 2 * 4 * size,
    )


def families(degradation: DegradationFamily) -> Sequence[DegradationFamily]:
    """The members of a mixture, or the family itself."""
    return degradation.members if isinstance(degradation, Mixture) else [degradation]


def _drawn(params: Params, family: DegradationFamily | None, count: int = 3) -> tuple[float, float]:
    """Seconds of processor time to draw one operator, and entries of its measurement: means of a few."""
    if family is None:
        return 0.0, 0.0
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    start = time.process_time()
    sizes = [draw_operator(family, 1, shape, i, params.seed).measurement_shape for i in range(count)]
    seconds = (time.process_time() - start) / count
    return seconds, sum(torch.Size(size).numel() for size in sizes) / count


def _config(params: Params, name: str) -> DenoiserConfig:
    start = params.starts_from(name)
    return params.architecture(start if name in params.train.distilled and start else name)


def _n_images(params: Params, column: Column) -> int:
    return params.evaluate.n_unconditional if column.family is None else params.evaluate.n_images


def table(lines: Iterable[Line], machine: Machine) -> list[str]:
    """The account in words, a line for each; what does not fit says why."""
    lines = list(lines)
    rows = [f"{'':42} {'calls':>6} {'PFLOP':>10} {'time':>9} {'memory':>9} {'disk':>9}   on {machine.name}"]
    rows += [_row(line, machine) for line in lines]
    disk, seconds = sum(line.disk for line in lines), sum(line.seconds(machine) for line in lines)
    rows.append(f"{'all':42} {'':6} {'':10} {duration(seconds):>9} {'':9} {disk / GIB:>5.1f} GiB")
    if disk > machine.disk:
        rows.append(f"does not fit: {disk / GIB:.0f} GiB of disk, {machine.disk / GIB:.0f} are free in {Path.cwd()}")
    return rows


def summary(lines: Sequence[Line], machine: Machine) -> str:
    """A table's account in one line: its trainings, its restorations, which take longest, and what does not fit."""
    trainings = {line.what: line.seconds(machine) for line in lines if line.stage != "evaluate"}
    restoring, methods = 0.0, dict[str, float]()
    for line in lines:
        if line.stage == "evaluate":
            restoring += line.seconds(machine)
            method = line.what.partition(": ")[2]
            methods[method] = methods.get(method, 0) + line.seconds(machine)
    longest = sorted(methods, key=lambda method: -methods[method])[:3]
    unfit = {line.what.rpartition(": ")[2]: problem for line in lines for problem in line.problems(machine)}
    return (
        f"training {duration(sum(trainings.values()))} "
        f"({', '.join(f'{name} {duration(seconds)}' for name, seconds in trainings.items()) or 'nothing'}); "
        f"restoring {duration(restoring)} ({', '.join(f'{m} {duration(methods[m])}' for m in longest)})"
        + "".join(f"; {what} does not fit: {problem}" for what, problem in unfit.items())
    )


def _row(line: Line, machine: Machine) -> str:
    calls = "" if line.calls is None else line.calls
    text = (
        f"{line.stage + ' / ' + line.what:42} {calls:>6} {line.flops / 1e15:>10,.3g} "
        f"{duration(line.seconds(machine)):>9} {line.memory / GIB:>5.1f} GiB {line.disk / GIB:>5.1f} GiB"
    )
    problems = line.problems(machine)
    return f"{text}   does not fit: {'; '.join(problems)}" if problems else text


def duration(seconds: float) -> str:
    """In the unit that suits: 12 s, 3.4 min, 5.6 h, 7.8 d."""
    for unit, size, up_to in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86_400)):
        if seconds < up_to:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
