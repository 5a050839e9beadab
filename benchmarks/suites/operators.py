"""H and H_pinv on stacks of feature images, forward and backward; and what it costs to make an operator."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import plain_operator
from benchmarks.records import Record, compared, milliseconds
from benchmarks.setting import MIXTURE, Setting, family
from benchmarks.timing import interleaved
from invfusion import rng
from invfusion.operators import LinearOperator

PRESETS = ("digits16", "ffhq64")


def operators(device: torch.device, seconds: float) -> Iterator[Record]:
    """Each family on the feature stacks of a network's finest level."""
    for preset in PRESETS:
        setting = Setting(preset, device)
        for kind in MIXTURE[:-1]:
            yield from _both_maps(setting, kind, seconds)


def _both_maps(setting: Setting, kind: str, seconds: float) -> Iterator[Record]:
    operator = setting.measurement(kind, setting.batch_size).operator
    plain = plain_operator(operator)
    stack, b = setting.config.stack_size(0), setting.batch_size
    draws = rng.generators(0, "benchmarks/stack", range(b))
    x = rng.randn((stack, *operator.image_shape), draws, setting.device)
    y = operator.H(x).detach()
    maps: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]] = {
        "H": (operator.H, plain.H, x),
        "H_pinv": (operator.H_pinv, lambda y: plain.H_pinv(y.flatten(2)), y),
    }
    for name, (ours, theirs, value) in maps.items():
        for direction, wrap in (("forward", _forward), ("forward and backward", _backward)):
            times = interleaved({"ours": wrap(ours, value), "plain": wrap(theirs, value)}, seconds, setting.device)
            yield compared(
                "operators", times, preset=setting.name, family=kind, map=name, direction=direction, images=b * stack
            )


def _forward(function: Callable[[Tensor], Tensor], value: Tensor) -> Callable[[], Any]:
    def call() -> None:
        with torch.no_grad():
            function(value)

    return call


def _backward(function: Callable[[Tensor], Tensor], value: Tensor) -> Callable[[], Any]:
    leaf = value.clone().requires_grad_()

    def call() -> None:
        out = function(leaf)
        torch.autograd.grad(out, leaf, torch.ones_like(out))

    return call


def creation(device: torch.device, seconds: float) -> Iterator[Record]:
    """Drawing the operators of one training batch, and computing what H and H_pinv need of them."""
    for preset in PRESETS:
        setting = Setting(preset, device)
        for kind in MIXTURE[:-1]:
            yield _created(setting, kind, seconds)


def _created(setting: Setting, kind: str, seconds: float) -> Record:
    def draw() -> LinearOperator:
        generator = rng.generator(0, "benchmarks/creation")
        return family(kind).sample(setting.batch_size, setting.config.image_shape, generator)

    drawn = draw().to(setting.device)

    def fresh() -> LinearOperator:
        return type(drawn).from_tensors(drawn.image_shape, drawn.tensors(), drawn.attributes())

    calls = {"draw": draw, "ours": lambda: fresh().prepare(), "plain": lambda: plain_operator(fresh())}
    times = interleaved(calls, seconds, setting.device)
    record = compared("creation", times, preset=setting.name, family=kind, operators=setting.batch_size)
    return record | {"draw_ms": milliseconds(times["draw"])}
