"""The contract of a linear operator H and of a measurement y = H x + sigma_y n.

An operator object holds B independent operators, one per sample of a batch. It is immutable, holds no randomness,
and is an `nn.Module` whose explicit tensors are buffers, so `.to(device, dtype)` works.
"""

import inspect
from abc import ABC
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from invfusion.errors import InvFusionError, OperatorError, ShapeError
from invfusion.operators.iterative import (
    DampedSolve,
    ImplicitSolve,
    LinearSolve,
    adjoint_by_differentiation,
    conjugate_gradients,
    largest_singular_value,
    least_squares,
    warn_unless_converged,
)
from invfusion.rng import upload

T = TypeVar("T")
# Maps singular values (B, ...) to as many factors.
Gain = Callable[[Tensor], Tensor]
# How well an operator knows its inverses: in closed form, by iterations up to a residual, or not at all.
Tier = Literal["exact", "iterative", "adjoint only"]
# Which samples of a batch: rows by number, a slice, or a mask of bools.
Index = Sequence[int] | Sequence[bool] | slice | Tensor


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


class LinearOperator(nn.Module, ABC):
    """B linear maps from images (C, H, W) to measurements of shape M = `measurement_shape`.

    Any axes K between the batch and the channels are carried along: `H` maps (B, *K, C, H, W) to (B, *K, *M), and
    `H_adjoint` and `H_pinv` map back. So an image (no K) and a stack of feature images use the same call. An operator
    of one sample serves a batch of any size.

    Measurement entries are of the order of pixel values in every family, so `sigma_y` means the same everywhere.

    A subclass names its `kind`, calls this constructor, registers its tensors as buffers and defines `_forward`.
    Everything else has a default: the adjoint is the vector-Jacobian product of H, the inverses are found by conjugate
    gradients, the norm by power iteration, and the operator is rebuilt as `cls(image_shape, **tensors, **attributes)`
    (with `batch_size` where there are no tensors). Each may be made exact or fast by defining `_adjoint`, `_pinv`,
    `_spectral`, `norm`. All of them compute in the operator's precision, at least float32, outside autocast.

    max_iterations: of conjugate gradients, whose tolerances are `iterative.TOLERANCES`. has_full_rows: whether H is
    known to reach every measurement, so that H H^T has an inverse.
    """

    kind: ClassVar[str]
    max_iterations: int = 300
    has_full_rows: bool = False
    placeholder: Tensor

    def __init__(self, batch_size: int, image_shape: Sequence[int], measurement_shape: Sequence[int]) -> None:
        super().__init__()
        self.batch_size = int(batch_size)
        self.image_shape = checked_image_shape(image_shape)
        self.measurement_shape: tuple[int, ...] = tuple(int(n) for n in measurement_shape)
        if self.batch_size < 1:
            raise ShapeError(f"an operator '{self.kind}' needs at least one sample")
        # Carries batch size, precision and device where no other tensor does.
        self.register_buffer("placeholder", torch.zeros(self.batch_size, 0), persistent=False)

    @staticmethod
    def from_functions(
        H: Callable[[Tensor], Tensor],
        *,
        image_shape: Sequence[int],
        H_adjoint: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> "LinearOperator":
        """The operator, of one sample, of a linear function of image batches in plain torch operations.

        H: (N, C, H, W) -> (N, *M), the same map for every image. H_adjoint: (N, *M) -> (N, C, H, W); derived by
        differentiation where it is not given. device: where the function works.
        Raises `OperatorError` where H is not linear or fails, `ShapeError` unless it gives one measurement per image.
        """
        from invfusion.operators.functions import FunctionOperator

        return FunctionOperator(H, image_shape, H_adjoint, device)

    # What a subclass defines. Inputs were checked and are at least float32.
    def _forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        raise OperatorError(f"the operator '{self.kind}' defines no map: give its class a method _forward(self, x)")

    def _adjoint(self, y: Tensor) -> Tensor:
        batch_and_stack = y.shape[: y.ndim - len(self.measurement_shape)]
        return adjoint_by_differentiation(self.H, y, (*batch_and_stack, *self.image_shape))

    def _pinv(self, y: Tensor) -> Tensor:
        if self.has_full_rows:
            return self.H_adjoint(self._damped(y, y.new_zeros(len(y))))
        return LinearSolve.apply(y, self._least_squares, self._least_squares_transposed)  # type: ignore[no-any-return, no-untyped-call]

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:  # noqa: ARG002 - for subclasses that know their spectrum
        raise OperatorError(f"the singular value decomposition of the operator '{self.kind}' is not known")

    def _preconditioner(self, lam: Tensor) -> Callable[[Tensor], Tensor] | None:  # noqa: ARG002
        """An approximation of (H H^T + lam)^-1 for lam (B,), that speeds conjugate gradients up."""
        return None

    @derived
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        return self._power_iteration()

    def _power_iteration(self) -> Tensor:
        draws = torch.Generator().manual_seed(0)
        start = torch.randn(1, *self.image_shape, generator=draws).to(self.device, self.dtype)
        return largest_singular_value(self.H, self.H_adjoint, start.expand(self.batch_size, *start.shape[1:]))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that define the operator, each with leading axis B; its buffers unless a subclass says more."""
        own = {name: t for name, t in self.named_buffers(recurse=False) if name != "placeholder"}
        return own or {"placeholder": self.placeholder}

    @property
    def nbytes(self) -> int:
        """Bytes of these tensors, of all B operators."""
        return sum(t.nbytes for t in self.tensors().values())

    def attributes(self) -> dict[str, Any]:
        """JSON-able facts beside the tensors that all B operators share (a stride, say)."""
        return {}

    @classmethod
    def from_tensors(cls, image_shape: Sequence[int], tensors: dict[str, Tensor], attributes: dict[str, Any]) -> Self:
        """Rebuild the operator; raises `OperatorError` or `ShapeError` where the definition does not fit the class."""
        given: dict[str, Any] = {**tensors, **attributes}
        if "placeholder" in tensors:
            given["batch_size"] = len(given.pop("placeholder"))
        try:
            inspect.signature(cls).bind(image_shape, **given)
        except TypeError as problem:
            raise OperatorError(
                f"operator '{cls.kind}' is defined by {list(inspect.signature(cls).parameters)}, "
                f"got the tensors {sorted(tensors)} and the attributes {sorted(attributes)}"
            ) from problem
        try:
            operator = cls(image_shape, **given)  # type: ignore[arg-type] # a subclass's own constructor
        except InvFusionError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as problem:
            raise OperatorError(f"operator '{cls.kind}' cannot be built from what was given: {problem}") from problem
        if "placeholder" in tensors:
            operator.register_buffer("placeholder", tensors["placeholder"], persistent=False)
        return operator

    def with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        """The same kind of operator with other tensors: some of its rows, say, or all of them on another device."""
        return type(self).from_tensors(self.image_shape, tensors, self.attributes())

    def check_values(self) -> None:
        """Raise `OperatorError` where the tensors hold values that the operator does not allow; for untrusted input."""
        for name, tensor in self.tensors().items():
            check_finite(tensor, f"tensor '{name}' of operator '{self.kind}'")

    # Public interface.
    @property
    def dtype(self) -> torch.dtype:
        """The precision of the arithmetic: that of the tensors, at least float32."""
        kinds = (t.dtype for t in self.tensors().values())
        return torch.promote_types(next(kinds, torch.float32), torch.float32)

    @property
    def device(self) -> torch.device:
        return next((t.device for t in self.tensors().values()), torch.device("cpu"))

    @property
    def tier(self) -> Tier:
        """How well the inverses are known. An operator without any says "adjoint only", and `H_pinv` refuses."""
        return "exact" if type(self)._pinv is not LinearOperator._pinv else "iterative"

    def H(self, x: Tensor) -> Tensor:
        """(B, *K, C, H, W) -> (B, *K, *M)."""
        self._check(x, self.image_shape, "an image")
        return self._run(self._forward, x)

    def H_adjoint(self, y: Tensor) -> Tensor:
        """(B, *K, *M) -> (B, *K, C, H, W), the transpose of `H`."""
        self._check(y, self.measurement_shape, "a measurement")
        return self._run(self._adjoint, y)

    def H_pinv(self, y: Tensor) -> Tensor:
        """(B, *K, *M) -> (B, *K, C, H, W), the Moore-Penrose inverse of `H`: exact, or up to the `tier`'s residual."""
        self._check(y, self.measurement_shape, "a measurement")
        self._check_invertible()
        return self._run(self._pinv, y)

    def damped_inverse(self, y: Tensor, lam: Tensor | float) -> Tensor:
        """(H H^T + lam I)^-1 y, shaped like y, (B, *K, *M); differentiable in y, lam and, once, in what H depends on.

        lam: at least 0, a number or one per sample, (B,). Where it is 0, the pseudo-inverse of H H^T stands in. So
        H_adjoint(damped_inverse(y, lam)) is H_pinv(y) damped by lam: the mean of a standard normal x given
        y = H x + sqrt(lam) n. Raises `OperatorError` for a negative lam, unless it is a tensor on an accelerator, whose
        values would have to be waited for, or where the tier is "adjoint only".
        """
        self._check(y, self.measurement_shape, "a measurement")
        self._check_invertible()
        levels = torch.as_tensor(lam, dtype=torch.promote_types(y.dtype, self.dtype), device=y.device)
        if levels.ndim > 1 or (levels.ndim == 1 and len(levels) not in (1, len(y))):
            raise ShapeError(f"lam must be a number or ({len(y)},), got {tuple(levels.shape)}")
        is_valid = bool((levels >= 0).all()) if answers_at_once(levels) else isinstance(lam, Tensor) or lam >= 0
        if not is_valid:
            raise OperatorError("the damping lam of an inverse must not be negative or not-a-number")
        return self._run(partial(self._damped, lam=levels.expand(len(y))), y)

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
        return self._run(partial(self._spectral, gain=gain), y)

    def back_project(self, y: Tensor) -> Tensor:
        """(B, *K, *M) -> (B, *K, C, H, W): a cheap stand-in for `H_pinv` inside networks, `H_pinv` itself where exact.

        Elsewhere it is the first step of gradient descent towards it, H^T y / norm^2.
        """
        if self.tier == "exact":
            return self.H_pinv(y)
        square = self.norm.square().clamp(min=torch.finfo(self.dtype).tiny)
        return self.H_adjoint(y / aligned(square, y.ndim).to(y.dtype))

    def as_image(self, y: Tensor) -> Tensor:
        """(B, *M) -> (B, C, H, W): the measurement as networks see it beside their input, `H_pinv` y."""
        return self.H_pinv(y)

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The image nearest to x (B, *K, C, H, W) that is consistent with y: x + H_pinv(y - H x)."""
        return x + self.H_pinv(y - self.H(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.H(x)

    def to_spec(self) -> dict[str, Any]:
        """{kind, image_shape, attributes, tensors}: JSON-able but for the tensors. See `operator_from_spec`.

        An operator from outside this package names the module to load as `plugin`.
        """
        module = type(self).__module__
        return {
            **({} if module.startswith("invfusion.") else {"plugin": module}),
            "kind": self.kind,
            "image_shape": list(self.image_shape),
            "attributes": self.attributes(),
            "tensors": self.tensors(),
        }

    def prepare(self) -> Self:
        """Compute now what would be computed at the first use of `H` and `H_pinv`; returns the operator itself."""
        return self

    def select(self, index: Index) -> Self:
        """The operators of some samples of the batch, as an operator: by rows (n,), a slice, or a mask (B,)."""
        rows = rows_of(index, self.batch_size)
        if isinstance(index, slice) and index.step in (None, 1):
            # Views: no indices are moved, which a CUDA graph could not hold.
            return self.with_tensors({name: t[index] for name, t in self.tensors().items()})
        picked = torch.tensor(rows, dtype=torch.long)
        return self.with_tensors({name: t[picked.to(t.device)] for name, t in self.tensors().items()})

    def expand(self, batch_size: int) -> Self:
        """An operator of one sample as one of `batch_size` equal samples; its tensors are not copied."""
        if self.batch_size == batch_size:
            return self
        if self.batch_size != 1:
            raise ShapeError(
                f"cannot expand an operator of {self.batch_size} samples to {batch_size}: it must have one"
            )
        return self.with_tensors({name: t.expand(batch_size, *t.shape[1:]) for name, t in self.tensors().items()})

    @classmethod
    def cat(cls, operators: Sequence[Self]) -> Self:
        """Join operators of equal kind, image shape and attributes along the batch."""
        first = operators[0]
        for other in operators[1:]:
            if first._signature() != other._signature():
                raise ShapeError(
                    f"cannot join operators {first.kind} {first.image_shape} {first.attributes()} and "
                    f"{other.kind} {other.image_shape} {other.attributes()} in one batch"
                )
        parts = [op.tensors() for op in operators]
        return first.with_tensors({name: torch.cat([p[name] for p in parts]) for name in parts[0]})

    def _signature(self) -> tuple[Any, ...]:
        """What must be equal for operators to stand in one batch."""
        shapes = {name: tuple(t.shape[1:]) for name, t in self.tensors().items()}
        return type(self), self.image_shape, self.attributes(), shapes

    # Defaults of the inverses.
    def _damped(self, y: Tensor, lam: Tensor) -> Tensor:
        """`damped_inverse` for lam (B,) in the precision of y."""
        levels = aligned(lam, y.ndim)
        if self.has_spectrum:
            inside = self._spectral(y, lambda q: 1 / (q.square() + aligned(lam, q.ndim).to(q.dtype)))
            # What no image can cause: nothing but the damping meets it.
            outside = y - self._spectral(y, torch.ones_like)
            return inside + torch.where(levels > 0, outside / levels.where(levels > 0, 1), 0)
        z: Tensor = DampedSolve.apply(y, lam, self._solve_damped)  # type: ignore[no-untyped-call]
        if not torch.is_grad_enabled():
            return z
        # The derivative of z = A^-1 y by what A depends on is -A^-1 dA z.
        image = self.H(self.H_adjoint(z.detach()))
        if not image.requires_grad:
            return z
        return z + ImplicitSolve.apply(-image, partial(self._damped, lam=lam.detach()))  # type: ignore[no-any-return, no-untyped-call]

    def _solve_damped(self, y: Tensor, lam: Tensor) -> Tensor:
        undamped = lam == 0
        if self.has_full_rows or not bool(undamped.any()):
            return self._conjugate_gradients(y, lam)
        # (H H^T)^+ = (H_pinv)^T H_pinv where the inverse of H H^T may not exist.
        z = self._least_squares_transposed(self._least_squares(y))
        if bool(undamped.all()):
            return z
        return torch.where(aligned(undamped, y.ndim), z, self._conjugate_gradients(y, lam.where(~undamped, 1)))

    def _conjugate_gradients(self, y: Tensor, lam: Tensor) -> Tensor:
        levels = aligned(lam, y.ndim)
        solution = conjugate_gradients(
            lambda z: self.H(self.H_adjoint(z)) + levels * z,
            y,
            len(self.measurement_shape),
            max_iterations=self.max_iterations,
            precondition=self._preconditioner(lam),
        )
        return warn_unless_converged(solution, f"the damped inverse of the operator '{self.kind}'")

    def _least_squares(self, y: Tensor) -> Tensor:
        axes = 3, len(self.measurement_shape)
        solution = least_squares(self.H, self.H_adjoint, y, axes, max_iterations=self.max_iterations)
        return warn_unless_converged(solution, f"the pseudo-inverse of the operator '{self.kind}'")

    def _least_squares_transposed(self, x: Tensor) -> Tensor:
        axes = len(self.measurement_shape), 3
        solution = least_squares(self.H_adjoint, self.H, x, axes, max_iterations=self.max_iterations)
        return warn_unless_converged(solution, f"the transposed pseudo-inverse of the operator '{self.kind}'")

    # Checks and conversions.
    def _run(self, apply: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """Apply in the operator's precision, at least float32 and outside autocast; answer in the input's dtype."""
        dtype = torch.promote_types(value.dtype, self.dtype)
        with torch.autocast(value.device.type, enabled=False):
            return apply(value.to(dtype)).to(value.dtype)

    def _check_invertible(self) -> None:
        if self.tier == "adjoint only":
            raise OperatorError(f"the operator '{self.kind}' knows only its adjoint: it has no pseudo-inverse")

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """A tensor of the definition, (B, ...): real and finite; whole numbers and bools become float32.

        Tensors made in inference mode are copied, since they could never take part in a backward pass.
        """
        if tensor is not None:
            what = f"tensor '{name}' of operator '{self.kind}'"
            check_real(tensor, what)
            if tensor.is_inference():
                with torch.inference_mode(False):
                    tensor = tensor.clone()
            tensor = tensor if tensor.is_floating_point() else tensor.float()
            check_finite(tensor, what)
        super().register_buffer(name, tensor, persistent)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in [n for n in self.__dict__ if isinstance(getattr(type(self), n, None), derived)]:
            del self.__dict__[name]
        return self

    def _check(self, value: Tensor, shape: tuple[int, ...], noun: str) -> None:
        if not value.is_floating_point():
            raise OperatorError(
                f"operator '{self.kind}' expects {noun} of real floating-point numbers, got {value.dtype}: convert "
                "pixels with invfusion.codec.decode, and complex numbers to channels"
            )
        n = len(shape)
        trailing = tuple(value.shape[value.ndim - n :]) if n else ()
        if value.ndim < n + 1 or trailing != shape or self.batch_size not in (1, value.shape[0]):
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


def answers_at_once(tensor: Tensor) -> bool:
    """Whether values (any shape) may be asked for: compiled networks cannot, and an accelerator is waited for."""
    return not torch.compiler.is_compiling() and not tensor.is_cuda


def aligned(tensor: Tensor, ndim: int) -> Tensor:
    """(B, ...) with stack axes behind the batch axis until it has `ndim` axes, so that it broadcasts over a stack."""
    return tensor.reshape(tensor.shape[0], *[1] * (ndim - tensor.ndim), *tensor.shape[1:])


def check_real(tensor: Tensor, what: str) -> None:
    """Raise `OperatorError` for complex numbers of any shape, of which half would be lost."""
    if tensor.is_complex():
        raise OperatorError(f"{what} is complex; give real and imaginary parts as rows or channels of their own")


def holds_values(tensor: Tensor) -> bool:
    """Whether values (any shape) can be looked at cheaply: not on an accelerator, which waits, nor of shapes alone."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; by the least and the largest, which not-a-number spoils too and which need no memory."""
    numbers = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    if not numbers.numel() or not numbers.is_floating_point():
        return True
    return all(bool(extreme.isfinite()) for extreme in numbers.aminmax())


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise `OperatorError` for infinite or not-a-number values in a tensor of any shape."""
    if holds_values(tensor) and not _is_finite(tensor):
        raise OperatorError(f"{what} holds infinite or not-a-number values")


def checked_binary(mask: Tensor, name: str, meaning: str) -> Tensor:
    """A mask (any shape) of bools or the numbers 0 and 1 as floats; raises `OperatorError` for other values."""
    check_real(mask, name)
    if holds_values(mask) and not bool(((mask == 0) | (mask == 1)).all()):
        raise OperatorError(f"{name} must hold only 0 and 1 ({meaning}); a picture becomes one by (pixels > threshold)")
    return mask if mask.is_floating_point() else mask.float()


def planes(mask: Tensor, name: str) -> Tensor:
    """Masks (H, W), (B, H, W) or (B, 1, H, W) as (B, 1, H, W); raises `ShapeError` for other numbers of axes."""
    if mask.ndim not in (2, 3, 4):
        raise ShapeError(f"{name} must be (H, W), (B, H, W) or (B, 1, H, W), got {tuple(mask.shape)}")
    mask = mask[None] if mask.ndim == 2 else mask
    return mask[:, None] if mask.ndim == 3 else mask


def rows_of(index: Index, batch_size: int) -> list[int]:
    """The rows that an index (n,) picks among `batch_size`; raises `ShapeError` unless it picks one that exists."""
    if isinstance(index, slice):
        rows = list(range(batch_size)[index])
    else:
        values = index.tolist() if isinstance(index, Tensor) else list(index)
        if any(isinstance(v, bool) for v in values):
            if len(values) != batch_size:
                raise ShapeError(
                    f"a mask of bools that selects samples must have {batch_size} of them, got {len(values)}"
                )
            rows = [i for i, wanted in enumerate(values) if wanted]
        else:
            rows = values
    if not rows or not all(type(i) is int and -batch_size <= i < batch_size for i in rows):
        raise ShapeError(f"an index must pick rows among {batch_size} samples, got {str(index)[:80]}")
    return rows


def check_definition(
    kind: str, given: Mapping[str, Any], allowed: Collection[str], noun: Literal["tensors", "attributes"]
) -> None:
    """Raise `OperatorError` unless exactly the allowed names are given."""
    if set(given) != set(allowed):
        raise OperatorError(f"operator '{kind}' is defined by the {noun} {sorted(allowed)}, got {sorted(given)}")


@dataclass(frozen=True, init=False)
class Measurement:
    """y with the operator that made it and the standard deviation of its noise.

    y: (B, *M); operator: B operators; sigma_y: (B,) noise standard deviation per entry, in pixel units ([-1, 1]).
    """

    y: Tensor
    operator: LinearOperator
    sigma_y: Tensor

    def __init__(self, y: Tensor, operator: LinearOperator, sigma_y: Tensor | float = 0.0) -> None:
        """sigma_y: one number for all, or (B,). An operator of one sample is expanded to the batch of y.

        Raises `ShapeError` where y is no batch of measurements of the operator or sigma_y has another length, and
        `OperatorError` where y is not real or sigma_y negative, infinite or not-a-number.
        """
        operator._check(y, operator.measurement_shape, "a measurement")
        if y.ndim != 1 + len(operator.measurement_shape):
            raise ShapeError(
                f"a measurement of the operator '{operator.kind}' must be (B, {operator.measurement_shape}), "
                f"got {tuple(y.shape)}"
            )
        object.__setattr__(self, "y", y)
        object.__setattr__(self, "operator", operator.expand(len(y)))
        levels = _checked_levels(sigma_y, y)
        if holds_values(levels):
            # Looked up here, it costs no waiting once the levels are on an accelerator.
            object.__setattr__(self, "is_noisy", bool((levels > 0).any()))
        object.__setattr__(self, "sigma_y", upload(levels, y.device).expand(len(y)))

    @classmethod
    def of(
        cls, x: Tensor, operator: LinearOperator, sigma_y: Tensor | float = 0.0, noise: Tensor | None = None
    ) -> "Measurement":
        """Measure x: y = H x + sigma_y * noise. `noise` is (B, *M), needed where sigma_y > 0."""
        clean = operator.H(x)
        levels = _checked_levels(torch.as_tensor(sigma_y, dtype=torch.float32), clean)
        if noise is None:
            noiseless = cls(clean, operator, levels)
            if noiseless.is_noisy:
                raise ShapeError("a measurement with sigma_y > 0 needs its noise handed in")
            return noiseless
        if noise.shape != clean.shape:
            raise ShapeError(
                f"the noise must have the measurement's shape {tuple(clean.shape)}, got {tuple(noise.shape)}"
            )
        return cls(clean + upload(levels, clean.device).view(-1, *[1] * (clean.ndim - 1)) * noise, operator, levels)

    @cached_property
    def H_pinv_y(self) -> Tensor:
        """H_pinv(y), (B, C, H, W): the measurement as an image. Computed once, since networks ask at every call."""
        return self.operator.H_pinv(self.y)

    @cached_property
    def image(self) -> Tensor:
        """(B, C, H, W): what networks see beside their input: `H_pinv_y`, but for a published operator's."""
        return self.operator.as_image(self.y)

    @cached_property
    def is_noisy(self) -> bool:
        """Whether any image of the batch was measured with noise. Looked up once; levels that were given on an
        accelerator make it wait."""
        return bool((self.sigma_y > 0).any())

    def to(self, device: torch.device | str) -> "Measurement":
        """A copy on another device; the operator of this one stays where it is."""
        tensors = {name: t.to(device) for name, t in self.operator.tensors().items()}
        return self.with_numbers(self.y.to(device), self.sigma_y.to(device), tensors)

    def with_numbers(self, y: Tensor, sigma_y: Tensor, tensors: dict[str, Tensor]) -> "Measurement":
        """The same kind of measurement of other numbers: y (B, *M), sigma_y (B,), and what defines the operators.

        Whether there is noise is not asked again.
        """
        found = Measurement(y, self.operator.with_tensors(tensors), sigma_y)
        if "is_noisy" in self.__dict__:
            object.__setattr__(found, "is_noisy", self.is_noisy)
        return found

    @classmethod
    def cat(cls, parts: Sequence["Measurement"]) -> "Measurement":
        """Join measurements along the batch; raises `ShapeError` where their operators cannot be joined."""
        operator = parts[0].operator.cat([part.operator for part in parts])
        return cls(torch.cat([part.y for part in parts]), operator, torch.cat([part.sigma_y for part in parts]))

    def select(self, index: Index) -> "Measurement":
        """The measurements of some samples of the batch: by rows (n,), a slice, or a mask of bools (B,)."""
        rows = rows_of(index, self.operator.batch_size)
        return Measurement(self.y[rows], self.operator.select(rows), self.sigma_y[rows])

    def check_values(self) -> None:
        """Raise `OperatorError` where y or sigma_y holds what cannot be measured, on any device."""
        if not bool(self.y.isfinite().all()):
            raise OperatorError("the measurement y holds infinite or not-a-number values")
        check_levels(self.sigma_y)


def _checked_levels(sigma_y: Tensor | float, y: Tensor) -> Tensor:
    """Noise levels as (1,) or (B,), float32 unless they have a floating-point type of their own."""
    levels = torch.as_tensor(sigma_y)
    check_real(levels, "sigma_y")
    if not (isinstance(sigma_y, Tensor) and levels.is_floating_point()):
        levels = levels.float()
    if holds_values(levels):
        check_levels(levels)
    if levels.numel() != 1 and tuple(levels.shape) != (len(y),):
        raise ShapeError(f"sigma_y must be one number or ({len(y)},), one per sample, got {tuple(levels.shape)}")
    return levels.reshape(-1)


def check_levels(levels: Tensor) -> None:
    """Raise `OperatorError` unless these, (B,), are standard deviations."""
    if not bool(((levels >= 0) & levels.isfinite()).all()):
        raise OperatorError(
            f"sigma_y is a standard deviation, at least 0 and finite; got {levels.detach().flatten()[:4].tolist()}"
        )
