"""CUDA graphs: the kernels that a function launches, recorded once and replayed at next to no cost for the host."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from invfusion.operators.base import Measurement

# Calls before the recording, in which kernels are chosen, plans made and masks cached.
WARM_UP = 2

T = TypeVar("T")
Outputs = tuple[Tensor, ...]
# (x, sigma, measurement) -> tensors with leading axis B.
OfMeasurement = Callable[[Tensor, Tensor, Measurement], Outputs]


def records(x: Tensor) -> bool:
    """Whether functions of x can be recorded where it lies."""
    return x.is_cuda


def recorded(function: Callable[[], T], pool: Any = None) -> tuple[Callable[[], None], T]:
    """What replays a function, and its result, into which each replay writes anew.

    The function may neither wait for the device nor move memory between it and the host; what it reads must live as
    long. pool: of memory, shared with other recordings, whose results a replay then destroys.
    """
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # Threads that draw operators meanwhile may do as they like.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = function()
    return graph.replay, result


class Replays:
    """One function of measured images, recorded for each kind of operator and shape; new numbers are copied in."""

    def __init__(self) -> None:
        self._recorded: dict[Any, tuple[Callable[[], None], list[Tensor], Outputs]] = {}
        self._pool: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __call__(self, function: OfMeasurement, x: Tensor, sigma: Tensor, measurement: Measurement) -> Outputs:
        """What the function gives for x (B, C, H, W) and sigma (B,), in memory of its own, not differentiated."""
        operator = measurement.operator
        given = [x, sigma, measurement.y, measurement.sigma_y, *operator.tensors().values()]
        shapes = tuple((t.shape, t.dtype, t.device) for t in given)
        key = (type(operator), str(operator.attributes()), measurement.is_noisy, shapes)
        if key not in self._recorded:
            self._recorded[key] = self._record(function, given, measurement)
        replay, inputs, outputs = self._recorded[key]
        torch._foreach_copy_(inputs, given)
        replay()
        return tuple(t.clone() for t in outputs)

    @torch.no_grad()
    def _record(
        self, function: OfMeasurement, given: list[Tensor], measurement: Measurement
    ) -> tuple[Callable[[], None], list[Tensor], Outputs]:
        inputs = [t.contiguous().clone() for t in given]
        x, sigma, y, sigma_y, *tensors = inputs
        operator = measurement.operator
        like = operator.with_tensors(dict(zip(operator.tensors(), tensors, strict=True)))
        held = Measurement(y, like, sigma_y)
        # Looked up before the recording.
        _ = held.is_noisy
        if self._pool is None and x.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        replay, outputs = recorded(lambda: function(x, sigma, held), self._pool)
        return replay, inputs, outputs
