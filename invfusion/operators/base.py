"""The contract of a linear operator H and of a measurement y = H x + sigma_y n.

An operator object holds B independent operators, one per sample of a batch. It is immutable, holds no randomness,
and is an `nn.Module` whose explicit tensors are buffers, so `.to(device, dtype)` works.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from invfusion.errors import OperatorError, ShapeError

T = TypeVar("T")
S = TypeVar("S", bound="LinearOperator")
P = ParamSpec("P")
# Maps singular values (B, ...) to as many factors.
Gain = Callable[[Tensor], Tensor]


class derived(cached_property[T]):  # noqa: N801 - used as a decorator
    """A quantity computed from an operator's tensors at first use, and again after `.to(...)`.

    Recomputing, not converting, is what makes the identities of a float32 operator hold to 1e-9 after `.double()`.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        @wraps(compute)
        def outside_autograd(operator: Any) -> T:
            # Tensors made in inference mode could never be used in a backward pass later.
            with torch.inference_mode(False), torch.no_grad():
                return compute(operator)

        super().__init__(outside_autograd)


def in_full_precision(
    apply: Callable[Concatenate[S, Tensor, P], Tensor],
) -> Callable[Concatenate[S, Tensor, P], Tensor]:
    """Run a method in the operator's precision, at least float32 and outside autocast; answer in the input's dtype."""

    @wraps(apply)
    def wrapped(operator: S, value: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        dtype = torch.promote_types(value.dtype, operator.dtype)
        with torch.autocast(value.device.type, enabled=False):
            return apply(operator, value.to(dtype), *args, **kwargs).to(value.dtype)

    return wrapped


class LinearOperator(nn.Module, ABC):
    """B linear maps from images (C, H, W) to measurements of shape M = `measurement_shape`.

    Any axes K between the batch and the channels are carried along: `H` maps (B, *K, C, H, W) to (B, *K, *M), and
    `H_adjoint` and `H_pinv` map back. So an image (no K) and a stack of feature images use the same call.

    Measurement entries are of the order of pixel values in every family, so `sigma_y` means the same everywhere.
    `H_pinv` is the exact Moore-Penrose inverse of `H`.
    """

    kind: ClassVar[str]

    def __init__(self, batch_size: int, image_shape: Sequence[int], measurement_shape: Sequence[int]) -> None:
        super().__init__()
        self.batch_size = int(batch_size)
        self.image_shape = checked_image_shape(image_shape)
        self.measurement_shape: tuple[int, ...] = tuple(int(n) for n in measurement_shape)
        if self.batch_size < 1:
            raise ShapeError(f"an operator '{self.kind}' needs at least one sample")

    # What a subclass implements. Inputs were checked by the public methods below.
    @abstractmethod
    def _forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _adjoint(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def _pinv(self, y: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that define the operator, each with leading axis B. `from_tensors` takes them back."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        """Rebuild the operator; raises `ShapeError` where the tensors do not fit the image shape."""

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:  # noqa: ARG002 - for subclasses that know their spectrum
        raise OperatorError(f"the singular value decomposition of the operator '{self.kind}' is not known")

    def attributes(self) -> dict[str, Any]:
        """JSON-able facts beside the tensors that all B operators share (a stride, say)."""
        return {}

    def check_values(self) -> None:
        """Raise `OperatorError` where the tensors hold values that the operator does not allow; for untrusted input."""
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise OperatorError(f"tensor '{name}' of operator '{self.kind}' holds infinite or not-a-number values")

    # Public interface.
    @property
    def dtype(self) -> torch.dtype:
        """The precision of the arithmetic: that of the tensors, at least float32."""
        kinds = (t.dtype for t in self.tensors().values())
        return torch.promote_types(next(kinds, torch.float32), torch.float32)

    def H(self, x: Tensor) -> Tensor:
        """(B, *K, C, H, W) -> (B, *K, *M)."""
        self._check(x, self.image_shape, "an image")
        return self._forward(x)

    def H_adjoint(self, y: Tensor) -> Tensor:
        """(B, *K, *M) -> (B, *K, C, H, W), the transpose of `H`."""
        self._check(y, self.measurement_shape, "a measurement")
        return self._adjoint(y)

    def H_pinv(self, y: Tensor) -> Tensor:
        """(B, *K, *M) -> (B, *K, C, H, W), the exact Moore-Penrose inverse of `H`."""
        self._check(y, self.measurement_shape, "a measurement")
        return self._pinv(y)

    @property
    def has_spectrum(self) -> bool:
        """Whether `spectral` is available."""
        return type(self)._spectral is not LinearOperator._spectral

    def spectral(self, y: Tensor, gain: Gain) -> Tensor:
        """A measurement filtered by singular value: U diag(gain(q)) U^T y for H = U diag(q) V^T, shaped like y.

        gain: maps the singular values above zero, (B, ...), to factors of that shape; what lies outside the range of H
        is dropped. So H_pinv(spectral(H(x), gain)) is V diag(gain(q)) V^T x. Raises `OperatorError` without a spectrum.
        """
        self._check(y, self.measurement_shape, "a measurement")
        return self._spectral(y, gain)

    def back_project(self, y: Tensor) -> Tensor:
        """A cheap stand-in for `H_pinv` inside networks; exact here unless a subclass says otherwise."""
        return self.H_pinv(y)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x that is consistent with y: x + H_pinv(y - H x)."""
        return x + self.H_pinv(y - self.H(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.H(x)

    def to_spec(self) -> dict[str, Any]:
        """{kind, image_shape, attributes, tensors}: JSON-able but for the tensors. See `operator_from_spec`."""
        return {
            "kind": self.kind,
            "image_shape": list(self.image_shape),
            "attributes": self.attributes(),
            "tensors": self.tensors(),
        }

    def prepare(self) -> Self:
        """Compute now what would be computed at the first use of `H` and `H_pinv`; returns the operator itself."""
        return self

    def select(self, index: Sequence[int] | slice) -> Self:
        """The operators of some samples of the batch, as an operator."""
        rows = range(self.batch_size)[index] if isinstance(index, slice) else index
        picked = torch.as_tensor(list(rows), dtype=torch.long)
        tensors = {name: t[picked.to(t.device)] for name, t in self.tensors().items()}
        return type(self).from_tensors(self.image_shape, tensors, self.attributes())

    @classmethod
    def cat(cls, operators: Sequence[Self]) -> Self:
        """Join operators of equal kind, image shape and attributes along the batch."""
        first = operators[0]
        for other in operators[1:]:
            if type(other) is not type(first) or (other.image_shape, other.attributes()) != (
                first.image_shape,
                first.attributes(),
            ):
                raise ShapeError(
                    f"cannot join operators {first.kind} {first.image_shape} {first.attributes()} and "
                    f"{other.kind} {other.image_shape} {other.attributes()} in one batch"
                )
        parts = [op.tensors() for op in operators]
        tensors = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        return type(first).from_tensors(first.image_shape, tensors, first.attributes())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in [n for n in self.__dict__ if isinstance(getattr(type(self), n, None), derived)]:
            del self.__dict__[name]
        return self

    def _check(self, value: Tensor, shape: tuple[int, ...], noun: str) -> None:
        n = len(shape)
        trailing = tuple(value.shape[value.ndim - n :]) if n else ()
        if value.ndim < n + 1 or trailing != shape or value.shape[0] != self.batch_size:
            raise ShapeError(
                f"operator '{self.kind}' of {self.batch_size} samples expects {noun} of shape "
                f"({self.batch_size}, *K, {', '.join(map(str, shape))}), got {tuple(value.shape)}"
            )


def checked_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W); raises `ShapeError` unless these are three positive numbers."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ShapeError(f"image_shape must be three positive numbers (C, H, W), got {tuple(image_shape)}")
    c, h, w = (int(n) for n in image_shape)
    return c, h, w


def aligned(tensor: Tensor, ndim: int) -> Tensor:
    """Insert stack axes behind the batch axis until `tensor` has `ndim` axes, so that it broadcasts over a stack."""
    return tensor.reshape(tensor.shape[0], *[1] * (ndim - tensor.ndim), *tensor.shape[1:])


def check_definition(
    kind: str, given: Mapping[str, Any], allowed: Collection[str], noun: Literal["tensors", "attributes"]
) -> None:
    """Raise `OperatorError` unless exactly the allowed names are given."""
    if set(given) != set(allowed):
        raise OperatorError(f"operator '{kind}' is defined by the {noun} {sorted(allowed)}, got {sorted(given)}")


@dataclass(frozen=True)
class Measurement:
    """y with the operator that made it and the standard deviation of its noise.

    y: (B, *M); operator: B operators; sigma_y: (B,) noise standard deviation per entry, in pixel units ([-1, 1]).
    """

    y: Tensor
    operator: LinearOperator
    sigma_y: Tensor

    @classmethod
    def of(
        cls, x: Tensor, operator: LinearOperator, sigma_y: Tensor | float = 0.0, noise: Tensor | None = None
    ) -> "Measurement":
        """Measure x: y = H x + sigma_y * noise. `noise` is (B, *M), needed where sigma_y > 0."""
        clean = operator.H(x)
        level = torch.as_tensor(sigma_y, dtype=torch.float32, device=x.device).expand(x.shape[0])
        if noise is None:
            if bool((level > 0).any()):
                raise ShapeError("a measurement with sigma_y > 0 needs its noise handed in")
            return cls(clean, operator, level)
        return cls(clean + level.view(-1, *[1] * (clean.ndim - 1)) * noise, operator, level)

    @cached_property
    def H_pinv_y(self) -> Tensor:
        """H_pinv(y), (B, C, H, W): the measurement as an image. Computed once, since networks ask at every call."""
        return self.operator.H_pinv(self.y)

    def to(self, device: torch.device | str) -> "Measurement":
        """A copy on another device; the operator of this one stays where it is."""
        operator = type(self.operator).from_tensors(
            self.operator.image_shape,
            {name: t.to(device) for name, t in self.operator.tensors().items()},
            self.operator.attributes(),
        )
        return Measurement(self.y.to(device), operator, self.sigma_y.to(device))

    @classmethod
    def cat(cls, parts: Sequence["Measurement"]) -> "Measurement":
        """Join measurements along the batch; raises `ShapeError` where their operators cannot be joined."""
        operator = parts[0].operator.cat([part.operator for part in parts])
        return cls(torch.cat([part.y for part in parts]), operator, torch.cat([part.sigma_y for part in parts]))

    def select(self, index: Sequence[int] | slice) -> "Measurement":
        """The measurements of some samples of the batch."""
        rows = list(range(self.operator.batch_size)[index]) if isinstance(index, slice) else list(index)
        return Measurement(self.y[rows], self.operator.select(rows), self.sigma_y[rows])
