"""Where the time of a training step goes: making the operators, applying them, the rest of the network, the update."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import Record, milliseconds, rounded
from benchmarks.setting import MIXTURE, Setting
from benchmarks.suites.steps import PRESETS, training_step
from benchmarks.timing import interleaved
from invfusion.models import Denoiser
from invfusion.models.feature_degradation import FeatureDegradation
from invfusion.operators import LinearOperator, Measurement
from invfusion.training.config import Precision


def breakdown(device: torch.device, seconds: float) -> Iterator[Record]:
    """The InvFusion model on each family, in the precision that the device trains in.

    Each part runs alone, so that the parts are those of a step without overlap; what is drawn ahead by a thread costs a
    step less than `draw_ms`.
    """
    precision: Precision = "bf16" if device.type == "cuda" else "fp32"
    for preset in PRESETS:
        setting = Setting(preset, device)
        for kind in MIXTURE[:-1]:
            yield _parts(setting, kind, precision, seconds)


def _parts(setting: Setting, kind: str, precision: Precision, seconds: float) -> Record:
    denoiser = setting.denoiser("invfusion").train()
    measurement = setting.measurement(kind, setting.batch_size)
    draws = count()
    forward = _forward(denoiser, measurement, setting, precision)
    calls: dict[str, Callable[[], Any]] = {
        "step": training_step(setting, setting.denoiser("invfusion"), kind, precision),
        "draw": lambda: setting.operator(kind, setting.batch_size, next(draws)).prepare(),
        "forward": forward,
        "forward_backward": lambda: forward().backward(),  # type: ignore[no-untyped-call]
        "maps": _maps(denoiser, measurement.operator, forward),
    }
    times = interleaved(calls, seconds, setting.device)
    step = times["step"].median
    shares = {f"{name}_share": rounded(times[name].median / step) for name in ("draw", "maps", "forward_backward")}
    return {
        "suite": "breakdown", "preset": setting.name, "family": kind, "precision": precision,
        "images": setting.batch_size, **{f"{name}_ms": milliseconds(time) for name, time in times.items()}, **shares,
    }  # fmt: skip


def _forward(
    denoiser: Denoiser, measurement: Measurement, setting: Setting, precision: Precision
) -> Callable[[], Tensor]:
    x = setting.images(setting.batch_size)
    sigma = torch.full((len(x),), 2.0, device=setting.device)

    def call() -> Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = denoiser(x, sigma, measurement).square().mean()
            return loss

    return call


def _maps(denoiser: nn.Module, operator: LinearOperator, forward: Callable[[], Any]) -> Callable[[], None]:
    """H and H_pinv of all layers, forward and backward, on stacks as they occur in one pass."""
    stacks: list[Tensor] = []

    def keep(layer: FeatureDegradation, inputs: tuple[Tensor, Measurement]) -> None:
        stacks.append(torch.randn(len(inputs[0]), layer.stack_size, *operator.image_shape, device=inputs[0].device))

    layers = [layer for layer in denoiser.modules() if isinstance(layer, FeatureDegradation)]
    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    forward()
    for hook in hooks:
        hook.remove()

    def call() -> None:
        for stack in stacks:
            z = stack.requires_grad_()
            y = operator.H(z)
            out = operator.back_project(y)
            torch.autograd.grad(out, z, torch.ones_like(out))

    return call
