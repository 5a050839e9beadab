"""An operator from plain functions: give H, and everything else is derived."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import LinearOperator, checked_image_shape, derived

Function = Callable[[Tensor], Tensor]


class FunctionOperator(LinearOperator):
    """See `LinearOperator.from_functions`. It lives in this process alone: functions have no spec."""

    kind: ClassVar[str] = "function"

    def __init__(
        self,
        H: Function,
        image_shape: Sequence[int],
        H_adjoint: Function | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = checked_image_shape(image_shape)
        super().__init__(1, shape, _measurement_shape(H, shape, device))
        self.function, self.adjoint_function = H, H_adjoint
        self.to(device)

    def _forward(self, x: Tensor) -> Tensor:
        return self._called(self.function, x, 3)

    def _adjoint(self, y: Tensor) -> Tensor:
        if self.adjoint_function is None:
            return super()._adjoint(y)
        return self._called(self.adjoint_function, y, len(self.measurement_shape))

    def _called(self, function: Function, value: Tensor, n_axes: int) -> Tensor:
        """In single precision where the functions know no other, as with a kernel of their own."""
        is_lowered = value.dtype == torch.float64 and not self.works_in_double
        return _over_stack(function, value.float() if is_lowered else value, n_axes).to(value.dtype)

    @derived
    def works_in_double(self) -> bool:
        """Whether both functions take numbers of double precision."""
        functions = [(self.function, self.image_shape), (self.adjoint_function, self.measurement_shape)]
        return all(_works_in_double(f, shape, self.device) for f, shape in functions if f is not None)

    def to_spec(self) -> dict[str, Any]:
        raise OperatorError(
            "an operator made from functions cannot be written down: make it a subclass of LinearOperator in a file of "
            "its own, registered as a plug-in"
        )

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """The same functions, which serve every sample alike, for another batch."""
        twin = copy.copy(self)
        twin.__dict__ = {
            k: v for k, v in self.__dict__.items() if not isinstance(getattr(type(self), k, None), derived)
        }
        twin._buffers = dict(tensors)
        twin.batch_size = len(tensors["placeholder"])
        return twin

    def _signature(self) -> tuple[Any, ...]:
        return (*super()._signature(), self.function, self.adjoint_function)


def _over_stack(function: Function, value: Tensor, n_axes: int) -> Tensor:
    """Stack axes (B, *K, ...) become more samples of the batch for the time of the call."""
    lead = value.shape[: value.ndim - n_axes]
    result = function(value.reshape(-1, *value.shape[len(lead) :]))
    return result.reshape(*lead, *result.shape[1:])


def _works_in_double(function: Function, shape: Sequence[int], device: torch.device | str) -> bool:
    try:
        with torch.no_grad():
            return function(torch.zeros(1, *shape, dtype=torch.float64, device=device)).dtype == torch.float64
    except Exception:  # noqa: BLE001 - whatever the user's function makes of them
        return False


def _measurement_shape(H: Function, shape: tuple[int, int, int], device: torch.device | str) -> tuple[int, ...]:
    """What H makes of two images; raises `OperatorError` or `ShapeError` unless it is linear and works by image."""
    a, b = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    what = f"(2, {', '.join(map(str, shape))})"
    try:
        with torch.no_grad():
            seen, other, both = H(a), H(b), H(2 * a - 3 * b)
    except Exception as problem:
        raise OperatorError(f"the function H fails on images {what}: {problem}") from problem
    if not isinstance(seen, Tensor) or not seen.is_floating_point():
        raise OperatorError("the function H must return a tensor of real floating-point numbers")
    if seen.ndim == 0 or len(seen) != 2:
        raise ShapeError(f"the function H must map images {what} to two measurements, got {tuple(seen.shape)}")
    expected = 2 * seen - 3 * other
    if not bool((both - expected).norm() <= 1e-3 * expected.norm() + 1e-6):
        raise OperatorError("the function H is not linear: H(2a - 3b) is not 2 H(a) - 3 H(b)")
    return tuple(seen.shape[1:])
