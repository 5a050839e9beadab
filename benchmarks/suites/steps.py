"""A training step and a network call of sampling: per preset, variant and family of degradations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.arithmetic import matmul_flops, matmul_peak
from benchmarks.plain import PlainDenoiser, PlainTrainer, plain_measurement
from benchmarks.records import Record, compared, milliseconds, rounded
from benchmarks.setting import MIXTURE, MODELS, Model, Setting
from benchmarks.timing import Timing, interleaved
from invfusion.models import Denoiser, compile_network, lower_precision
from invfusion.models.flops import attention_flops
from invfusion.training.config import Precision
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper

Call = Callable[[], Any]
PRESETS = ("digits16", "ffhq64", "imagenet64", "ffhq256")


def in_full(setting: Setting) -> bool:
    """Whether all models are measured, compiled too; a CPU runs the eager InvFusion of the paper's presets."""
    return setting.preset == "digits16" or setting.device.type == "cuda"


def cases(setting: Setting) -> Iterator[tuple[Model, Sequence[str | None]]]:
    """The models to measure, each with its families."""
    for model in MODELS if in_full(setting) else ("invfusion",):
        yield model, [None] if model == "unconditional" else MIXTURE


def plain_of(model: Model) -> Model:
    """The published model that is held beside it: InvFusion-G has none of its own, and serves where InvFusion does."""
    return "invfusion" if model == "invfusion_g" else model


def training(device: torch.device, seconds: float, compiled: bool = False) -> Iterator[Record]:
    """One step: operator, forward, backward, update and moving average; "mixture" is the mean over its members."""
    for preset in PRESETS:
        setting = Setting(preset, device)
        for variant, kinds in cases(setting):
            yield from _mixed("training", setting, variant, kinds, seconds, _training_calls, compiled)


def sampling(device: torch.device, seconds: float, compiled: bool = False) -> Iterator[Record]:
    """One network call of a sampler. What depends on the measurement alone is there already, but in the plain one."""
    for preset in PRESETS:
        setting = Setting(preset, device)
        for variant, kinds in cases(setting):
            yield from _mixed("sampling", setting, variant, kinds, seconds, _sampling_calls, compiled)


def _mixed(
    suite: str, setting: Setting, variant: Model, kinds: Sequence[str | None], seconds: float,
    calls_of: Callable[..., tuple[dict[str, Call], int]], compiled: bool,
) -> Iterator[Record]:  # fmt: skip
    """The records of every family, and that of their mixture."""
    batch = setting.batch_size if suite == "training" else setting.sampling_batch
    all_times, all_flops = [], []
    peak = matmul_peak(setting.device, torch.float32)
    for kind in kinds:
        calls, flops = calls_of(setting, variant, kind, compiled and in_full(setting))
        times = interleaved(calls, seconds, setting.device)
        all_times.append(times)
        all_flops.append(flops)
        yield _record(suite, setting, variant, kind or "none", batch, times, flops, peak)
    if len(kinds) > 1:
        mean = {name: _mean([times[name] for times in all_times]) for name in all_times[0]}
        yield _record(suite, setting, variant, "mixture", batch, mean, sum(all_flops) / len(kinds), peak)


def _record(
    suite: str, setting: Setting, variant: str, kind: str, batch: int, times: Mapping[str, Timing], flops: float,
    peak: float,
) -> Record:  # fmt: skip
    """MFU is of the float32 network against the float32 matrix products of this device."""
    record = compared(suite, times, preset=setting.name, variant=variant, family=kind, images=batch)
    others = {f"{name}_ms": milliseconds(t) for name, t in times.items() if name not in ("ours", "plain")}
    return record | others | {
        "gflop_per_image": rounded(flops / batch / 1e9),
        "mfu": rounded(flops / times["ours"].median / peak),
        "images_per_second": rounded(batch / times["ours"].median),
    }  # fmt: skip


def _mean(timings: Sequence[Timing]) -> Timing:
    n = len(timings)
    return Timing(sum(t.median for t in timings) / n, sum(t.least for t in timings) / n, min(t.n for t in timings))


def _training_calls(setting: Setting, variant: Model, kind: str | None, compiled: bool) -> tuple[dict[str, Call], int]:
    denoiser = setting.denoiser(variant)
    ours = training_step(setting, denoiser, kind, "fp32")
    trainer = PlainTrainer(setting.task(kind), setting.denoiser(plain_of(variant)), setting.device)
    calls = {
        "ours": ours,
        "plain": _counting(trainer.step, setting),
        "bf16": training_step(setting, setting.denoiser(variant), kind, "bf16"),
    }
    if compiled:
        for name, precision in (("compiled", "fp32"), ("compiled_bf16", "bf16")):
            network = setting.denoiser(variant)
            compile_network(network)
            calls[name] = training_step(setting, network, kind, precision)  # type: ignore[arg-type]
    # The backward pass does the work of the forward pass twice.
    return calls, matmul_flops(ours) + 3 * setting.batch_size * attention_flops(denoiser.config)


def training_step(setting: Setting, denoiser: Denoiser, kind: str | None, precision: Precision) -> Call:
    """The next training step at each call."""
    task = setting.task(kind, precision)
    stepper = Stepper(task, denoiser.train(), Processes(), setting.device)
    ema = EMA(denoiser, task.config.ema_half_life, task.config.ema_rampup)

    def step(nimg: int, batches: Any) -> None:
        stepper.step(nimg, batches)
        ema.update(denoiser, nimg + setting.batch_size, setting.batch_size)

    return _counting(step, setting)


def _counting(step: Callable[..., Any], setting: Setting) -> Call:
    """The next step of a run at each call."""
    starts, batches = iter(range(0, 10**9, setting.batch_size)), setting.batches()
    return lambda: step(next(starts), batches)


def _sampling_calls(setting: Setting, variant: Model, kind: str | None, compiled: bool) -> tuple[dict[str, Call], int]:
    n = setting.sampling_batch
    denoiser = setting.denoiser(variant).eval()
    measurement = None if kind is None else setting.measurement(kind, n)
    plain, x = plain_measurement(measurement), setting.images(n)
    sigma = torch.full((n,), 2.0, device=setting.device)
    rough = setting.denoiser(variant).eval()
    lower_precision(rough)
    networks: dict[str, tuple[Any, Any]] = {
        "ours": (denoiser, measurement),
        "plain": (PlainDenoiser(setting.denoiser(plain_of(variant)).eval()), plain),
        "bf16": (rough, measurement),
    }
    if compiled:
        for name, lower in (("compiled", False), ("compiled_bf16", True)):
            network = setting.denoiser(variant).eval()
            if lower:
                lower_precision(network)
            compile_network(network)
            networks[name] = (network, measurement)
    calls = {name: _network_call(network, x, sigma, seen) for name, (network, seen) in networks.items()}
    return calls, matmul_flops(calls["ours"]) + n * attention_flops(denoiser.config)


def _network_call(network: Any, *arguments: Any) -> Call:
    def call() -> None:
        with torch.no_grad():
            network(*arguments)

    return call
