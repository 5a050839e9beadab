"""CUDA graphs: the kernels that a function launches, recorded once and replayed at next to no cost for the host."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from invfusion.errors import OperatorError
from invfusion.operators.base import Measurement

# Calls before the recording, in which kernels are chosen, plans made and masks cached.
WARM_UP = 2
# Recordings of a function that are kept; each holds its numbers.
MOST_RECORDINGS = 16

T = TypeVar("T")
Outputs = tuple[Tensor, ...]
# (x, sigma, measurement) -> tensors with leading axis B.
OfMeasurement = Callable[[Tensor, Tensor, Measurement], Outputs]


def can_record(x: Tensor) -> bool:
    """Whether functions of x (any shape) can be recorded where it lies."""
    return x.is_cuda


def recorded(function: Callable[[], T], device: torch.device, pool: Any = None) -> tuple[Callable[[], None], T]:
    """What replays a function, and its result, into which each replay writes anew.

    The function may neither wait for the device nor move memory between it and the host; what it reads must live as
    long. pool: of memory, shared with other recordings, whose results a replay then destroys.
    Raises `OperatorError` where the function cannot be recorded.
    """
    here, aside, graph = torch.cuda.current_stream(device), _stream(device), torch.cuda.CUDAGraph()
    # A recording that fails leaves its stream the current one; these put it back.
    with torch.cuda.device(device), torch.cuda.stream(here):
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function()
        here.wait_stream(aside)
        try:
            # Threads that draw operators meanwhile may do as they like.
            with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                result = function()
        except RuntimeError as problem:
            raise OperatorError(
                "the call cannot be recorded as a CUDA graph, as where an operator or the conditioning on it asks for "
                f"numbers at every call (conjugate gradients do): call the denoiser itself ({problem})"
            ) from problem
    return graph.replay, result


@cache
def _stream(device: torch.device) -> Any:
    """That on which all recordings of a device are made: they may share memory, and so must share it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Recording(NamedTuple):
    """function, reads: what the graph refers to, which lives as long."""

    replay: Callable[[], None]
    inputs: list[Tensor]
    outputs: Outputs
    function: Callable[[], Outputs]
    reads: Sequence[Tensor]


class Replays:
    """One function of measured images, recorded for each kind of operator and shape; new numbers are copied in."""

    def __init__(self) -> None:
        self._recorded: dict[Any, _Recording] = {}
        self._pool: Any = None

    # A copy records anew.
    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    @torch.no_grad()
    def __call__(
        self, function: OfMeasurement, reads: Sequence[Tensor], x: Tensor, sigma: Tensor, measurement: Measurement
    ) -> Outputs:
        """What the function gives for x (B, C, H, W) and sigma (B,), in memory of its own, not differentiated.

        reads: what else it depends on, in memory that stays where it is.
        """
        given = _numbers_of(x, sigma, measurement)
        operator = measurement.operator
        shapes = tuple((t.shape, t.dtype, t.device) for t in given)
        where = tuple(t.data_ptr() for t in reads)
        key = (type(operator), str(operator.attributes()), measurement.is_noisy, shapes, where)
        recording = self._recorded.pop(key, None) or self._record(function, reads, given, measurement)
        while len(self._recorded) >= MOST_RECORDINGS:
            del self._recorded[next(iter(self._recorded))]
        # The last used are the last to go.
        self._recorded[key] = recording
        torch._foreach_copy_(recording.inputs, given)
        recording.replay()
        return tuple(t.clone() for t in recording.outputs)

    def _record(
        self, function: OfMeasurement, reads: Sequence[Tensor], given: list[Tensor], measurement: Measurement
    ) -> _Recording:
        inputs = [t.contiguous().clone() for t in given]
        x, sigma, y, sigma_y, *tensors = inputs
        named = dict(zip(measurement.operator.tensors(), tensors, strict=True))
        like = measurement.with_numbers(y, sigma_y, named)

        def again() -> Outputs:
            # The operator too: what its constructor makes of its tensors belongs to each batch.
            return function(x, sigma, like.with_numbers(y, sigma_y, named))

        if self._pool is None and x.is_cuda:
            self._pool = torch.cuda.graph_pool_handle()
        replay, outputs = recorded(again, x.device, self._pool)
        return _Recording(replay, inputs, outputs, again, reads)


def _numbers_of(x: Tensor, sigma: Tensor, measurement: Measurement) -> list[Tensor]:
    return [x, sigma, measurement.y, measurement.sigma_y, *measurement.operator.tensors().values()]


def is_differentiated(x: Tensor, sigma: Tensor, measurement: Measurement) -> bool:
    """Whether gradients flow to x (B, C, H, W), sigma (B,) or anything of a measurement."""
    return any(t.requires_grad for t in _numbers_of(x, sigma, measurement))
