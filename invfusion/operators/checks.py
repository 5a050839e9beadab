"""Does an operator keep the contract of `LinearOperator`? Numeric checks that say what failed, and by how much."""

import copy
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from invfusion.errors import OperatorError
from invfusion.operators.base import LinearOperator, Tier
from invfusion.operators.registry import OPERATORS
from invfusion.operators.spec import operator_from_spec, spec_from_json, spec_to_json

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
POWER_ITERATIONS = 100


@dataclass(frozen=True)
class Finding:
    """One check: its relative error (infinite where the operator raised or gave not-a-number) and what was allowed.

    Where nothing is required, tolerance is infinite: the error is a fact about an iterative inverse.
    """

    name: str
    meaning: str
    error: float
    tolerance: float
    remark: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok    " if self.passed else "FAILED"
        if self.tolerance == float("inf"):
            return f"stated {self.name}: error {self.error:.1e} ({self.meaning})"
        remark = f" [{self.remark}]" if self.remark else ""
        return f"{verdict} {self.name}: error {self.error:.1e}, allowed {self.tolerance:.0e} ({self.meaning}){remark}"


@dataclass(frozen=True)
class OperatorReport:
    """What `check_operator` found; `str()` shows every check.

    tier: how well the operator says that it knows its inverses. residual: |H H_pinv y - y| / |y| for a y that can be
    reached, None without an inverse. works_with: which samplers and models, in words.
    """

    subject: str
    findings: tuple[Finding, ...]
    tier: Tier = "exact"
    residual: float | None = None
    works_with: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.passed)

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        verdict = "keeps its contract" if self.passed else f"breaks its contract in {len(self.failures)} points"
        reached = "" if self.residual is None else f", residual reached {self.residual:.1e}"
        lines = [f"{self.subject} {verdict}", f"  tier: {self.tier}{reached}"]
        return "\n".join([*lines, *(f"  {f}" for f in self.findings), *(f"  {line}" for line in self.works_with)])


class Probe:
    """An operator with random images and measurements to try it on."""

    def __init__(self, operator: LinearOperator, seed: int, with_inverse: bool) -> None:
        self.operator, self.with_inverse = operator, with_inverse
        self.generator = torch.Generator().manual_seed(seed)
        self.device = next((t.device for t in operator.tensors().values()), torch.device("cpu"))
        self.x, self.x2 = self.image(), self.image()
        self.y, self.y2 = self.measurement(), self.measurement()

    def image(self, *stack: int) -> Tensor:
        return self._normal(*stack, *self.operator.image_shape)

    def measurement(self, *stack: int) -> Tensor:
        return self._normal(*stack, *self.operator.measurement_shape)

    @property
    def methods(self) -> list[str]:
        """The maps that are held to linearity and the like; iterations stop where they are accurate enough."""
        return ["H", "H_adjoint", *(["H_pinv"] if self.with_inverse else [])]

    @cached_property
    def maps(self) -> list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]:
        """Each of the maps with two inputs of it."""
        inputs = {"H": (self.x, self.x2), "H_adjoint": (self.y, self.y2), "H_pinv": (self.y, self.y2)}
        return [(getattr(self.operator, name), *inputs[name]) for name in self.methods]

    def _normal(self, *shape: int) -> Tensor:
        values = torch.randn(self.operator.batch_size, *shape, generator=self.generator, dtype=torch.float64)
        return values.to(self.device, self.operator.dtype)


class Check(NamedTuple):
    """`measure` yields relative errors; `tolerance` None means that of the operator's precision.

    of_inverse: whether it asks for H_pinv alone.
    """

    name: str
    meaning: str
    measure: Callable[[Probe], Iterator[float]]
    tolerance: float | None = None
    of_inverse: bool = False


def check_operator(operator: LinearOperator, *, tolerance: float | None = None, seed: int = 0) -> OperatorReport:
    """Try the operator on random inputs against everything that `LinearOperator` promises.

    tolerance: allowed relative error of the exact identities; by default 1e-4 in float32 and 1e-9 in float64. An
    inverse that the operator calls iterative is held to it only where it is given; else its errors are stated. One that
    is not known at all is left out.
    Takes any subclass; one that is not registered makes its round trip through its tensors instead of a spec.
    """
    allowed = TOLERANCES[operator.dtype] if tolerance is None else tolerance
    inverse = {"exact": allowed, "iterative": tolerance or float("inf"), "adjoint only": None}[operator.tier]
    with warnings.catch_warnings():
        # That iterations did not converge is part of the report.
        warnings.filterwarnings("ignore", category=RuntimeWarning, message=".*conjugate-gradient steps.*")
        findings = tuple(
            _run(check, operator, inverse if check.of_inverse and inverse else allowed, inverse == allowed, seed)
            for check in CHECKS
            if inverse is not None or not check.of_inverse
        )
    residual = next((f.error for f in findings if f.name == "Penrose 1"), None)
    subject = f"operator '{operator.kind}' of {operator.batch_size} samples"
    return OperatorReport(subject, findings, operator.tier, residual, _works_with(operator))


def _run(check: Check, operator: LinearOperator, tolerance: float, with_inverse: bool, seed: int) -> Finding:
    allowed = tolerance if check.tolerance is None else check.tolerance
    try:
        errors = list(check.measure(Probe(operator, seed, with_inverse)))
    except Exception as error:  # noqa: BLE001 - whatever a user's operator raises is a finding
        remark = f"{type(error).__name__}: {error}"
        return Finding(check.name, check.meaning, float("inf"), min(allowed, 1.0), remark)
    worst = max((e if e == e else float("inf") for e in errors), default=0.0)
    return Finding(check.name, check.meaning, worst, allowed)


def _works_with(operator: LinearOperator) -> tuple[str, ...]:
    """The samplers and models that can use the operator, in words."""
    inverse = operator.tier != "adjoint only"
    offered = {"adjoint", "grad", "components"}
    offered |= {"pinv", "damped"} if inverse else set()
    offered |= {"spectral"} if operator.has_spectrum else set()
    # A layer above this one, which an operator knows nothing of.
    samplers = importlib.import_module("invfusion.samplers").SAMPLERS
    without = [kind for kind, sampler in samplers.items() if not sampler.requires <= offered]
    noisy = [kind for kind, s in samplers.items() if kind not in without and not s.requires_if_noisy <= offered]
    every = f"all {len(samplers)} samplers"
    return (
        f"samplers: {every}{_but(without)}; with noise, {every}{_but(without + noisy)}",
        "models: " + ("all, conditional ones included" if inverse else "unconditional ones, which do not see H_pinv y"),
    )


def _but(kinds: list[str]) -> str:
    return f" but {', '.join(kinds)}" if kinds else ""


# Errors, relative and worst over the batch.
def _distance(value: Tensor, expected: Tensor) -> float:
    if value.shape != expected.shape:
        raise OperatorError(f"shape {tuple(value.shape)} instead of {tuple(expected.shape)}")
    return _ratio(_size(value.double() - expected.double()), _size(expected))


def _size(value: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(value.double().flatten(1), dim=1)
    return size


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).flatten(1).sum(dim=1)


def _ratio(error: Tensor, scale: Tensor) -> float:
    """Where the scale is zero, the error itself counts."""
    return float((error.detach().abs() / scale.detach().where(scale > 0, 1)).max())


def _asymmetry(forth: Tensor, back: Tensor, a: Tensor, b: Tensor) -> float:
    """|<forth, b> - <a, back>| relative to the sizes of the factors."""
    scale = torch.maximum(_size(forth) * _size(b), _size(a) * _size(back))
    return _ratio(_inner(forth, b) - _inner(a, back), scale)


# The checks.
def _shapes(probe: Probe) -> Iterator[float]:
    op = probe.operator
    images, measurements = op.image_shape, op.measurement_shape
    for (apply, value, _), shape in zip(probe.maps, (measurements, images, images), strict=False):
        result = apply(value)
        expected = (op.batch_size, *shape)
        if (tuple(result.shape), result.dtype, result.device) != (expected, value.dtype, value.device):
            raise OperatorError(
                f"got {tuple(result.shape)} {result.dtype} on {result.device} "
                f"instead of {expected} {value.dtype} on {value.device}"
            )
        yield 0.0 if bool(torch.isfinite(result).all()) else float("inf")


def _linearity(probe: Probe) -> Iterator[float]:
    for apply, a, b in probe.maps:
        yield _distance(apply(2 * a - 3 * b), 2 * apply(a) - 3 * apply(b))
        yield float(apply(torch.zeros_like(a)).abs().sum())


def _adjointness(probe: Probe) -> Iterator[float]:
    op, x, y = probe.operator, probe.x, probe.y
    yield _asymmetry(op.H(x), op.H_adjoint(y), x, y)
    image_side = op.H_adjoint(op.H(x))
    yield _ratio(_inner(image_side, x) - _size(op.H(x)) ** 2, _size(op.H(x)) ** 2)


def _penrose_1(probe: Probe) -> Iterator[float]:
    y = probe.operator.H(probe.x)
    yield _distance(probe.operator.H(probe.operator.H_pinv(y)), y)


def _penrose_2(probe: Probe) -> Iterator[float]:
    x = probe.operator.H_pinv(probe.y)
    yield _distance(probe.operator.H_pinv(probe.operator.H(x)), x)


def _penrose_3(probe: Probe) -> Iterator[float]:
    op, a, b = probe.operator, probe.y, probe.y2
    yield _asymmetry(op.H(op.H_pinv(a)), op.H(op.H_pinv(b)), a, b)


def _penrose_4(probe: Probe) -> Iterator[float]:
    op, a, b = probe.operator, probe.x, probe.x2
    yield _asymmetry(op.H_pinv(op.H(a)), op.H_pinv(op.H(b)), a, b)


def _projection(probe: Probe) -> Iterator[float]:
    y = probe.operator.H(probe.x)
    yield _distance(probe.operator.H(probe.operator.project(probe.x2, y)), y)


def _norm(probe: Probe) -> Iterator[float]:
    """Power iteration approaches the largest singular value from below."""
    op, x = probe.operator, probe.x
    for _ in range(POWER_ITERATIONS):
        x = op.H_adjoint(op.H(x))
        x = x / _size(x).where(_size(x) > 0, 1).to(x).view(-1, 1, 1, 1)
    yield _ratio(_size(op.H(x)) / _size(x).where(_size(x) > 0, 1) - op.norm.double(), op.norm.double())


def _scale(probe: Probe) -> Iterator[float]:
    """Decimal orders of magnitude between measurement entries and the pixels of plain images.

    The mean size over a white image counts, not its largest entry: a Fourier transform gathers it in one.
    """
    op = probe.operator
    white, noise = (op.H(x).abs().flatten(1) for x in (torch.ones_like(probe.x), probe.x.sign()))
    if white.shape[1] and bool((op.norm > 0).any()):
        size = torch.maximum(white.square().mean(dim=1).sqrt(), noise.amax(dim=1))
        yield float(size[op.norm > 0].log10().abs().max())


def _batch_independence(probe: Probe) -> Iterator[float]:
    op = probe.operator
    samples = [op.select([i]) for i in range(op.batch_size)]
    joined = type(op).cat(samples)
    for name in probe.methods:
        value = probe.x if name == "H" else probe.y
        whole = getattr(op, name)(value)
        alone = [getattr(s, name)(value[i : i + 1]) for i, s in enumerate(samples)]
        yield _distance(torch.cat(alone), whole)
        yield _distance(getattr(joined, name)(value), whole)


def _stack_axes(probe: Probe) -> Iterator[float]:
    op = probe.operator
    for name in probe.methods:
        apply, make = getattr(op, name), probe.image if name == "H" else probe.measurement
        stack = make(2, 3)
        together = apply(stack)
        for i in range(2):
            yield _distance(together[:, i, 1], apply(stack[:, i, 1]))


def _repeatability(probe: Probe) -> Iterator[float]:
    op = probe.operator
    before = {name: t.clone() for name, t in op.tensors().items()}
    for apply, value, other in probe.maps:
        first = apply(value)
        apply(torch.stack([other, other], dim=1))
        yield float((apply(value) - first).abs().sum())
    yield sum(float((t - before[name]).abs().sum()) for name, t in op.tensors().items())


def _derivatives(probe: Probe) -> Iterator[float]:
    op, x, y = probe.operator, probe.x, probe.y
    yield _distance(_vjp(op.H, x, y), op.H_adjoint(y))
    yield _distance(_vjp(op.H_adjoint, y, x), op.H(x))
    if probe.with_inverse:
        yield _asymmetry(op.H_pinv(y), _vjp(op.H_pinv, y, x), y, x)


def _vjp(apply: Callable[[Tensor], Tensor], at: Tensor, cotangent: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        result = apply(leaf)
        if not result.requires_grad:
            raise OperatorError("the result is cut off from the graph of derivatives")
        gradient: Tensor = torch.autograd.grad(result, leaf, cotangent)[0]
        return gradient


def _low_precision(probe: Probe) -> Iterator[float]:
    for apply, value, _ in probe.maps:
        rounded = value.to(torch.bfloat16)
        result = apply(rounded)
        if result.dtype != torch.bfloat16:
            raise OperatorError(f"a bfloat16 input gave {result.dtype}")
        yield _distance(result, apply(rounded.to(value.dtype)))


def _autocast(probe: Probe) -> Iterator[float]:
    for apply, value, _ in probe.maps:
        plain = apply(value)
        with torch.autocast(probe.device.type, dtype=torch.bfloat16):
            yield _distance(apply(value), plain)


def _double(probe: Probe) -> Iterator[float]:
    twin = Probe(copy.deepcopy(probe.operator).double(), 1, probe.with_inverse)
    inverse = (_penrose_1, _penrose_2, _penrose_3, _penrose_4) if probe.with_inverse else ()
    for check in (_adjointness, *inverse):
        yield from check(twin)


def _accelerator(probe: Probe) -> Iterator[float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    moved = copy.deepcopy(probe.operator).to(device)
    for name in probe.methods:
        value = probe.x if name == "H" else probe.y
        result = getattr(moved, name)(value.to(device))
        if result.device.type != device:
            raise OperatorError(f"{name} of an input on {device} answered on {result.device}")
        yield _distance(result.to(probe.device), getattr(probe.operator, name)(value))


def _round_trip(probe: Probe) -> Iterator[float]:
    op = probe.operator
    twin = _rebuilt(op)
    if (twin.image_shape, twin.measurement_shape, twin.attributes()) != (
        op.image_shape,
        op.measurement_shape,
        op.attributes(),
    ):
        raise OperatorError("the rebuilt operator has other shapes or attributes")
    yield _distance(twin.H(probe.x), op.H(probe.x))
    if probe.with_inverse:
        yield _distance(twin.H_pinv(probe.y), op.H_pinv(probe.y))


def _rebuilt(op: LinearOperator) -> LinearOperator:
    if OPERATORS.get(op.kind) is not type(op):
        return op.with_tensors(op.tensors())
    twin = operator_from_spec(spec_from_json(spec_to_json(op.to_spec())))
    return twin.to(next(iter(op.tensors().values())).device)


CHECKS = (
    Check("shapes", "results have the promised shape, dtype and device, and are finite", _shapes, 0.0),
    Check("linearity", "A(2a - 3b) = 2Aa - 3Ab for H, H_adjoint, H_pinv", _linearity),
    Check("adjoint", "<Hx, y> = <x, H_adjoint y>", _adjointness),
    Check("Penrose 1", "H H_pinv H = H", _penrose_1, of_inverse=True),
    Check("Penrose 2", "H_pinv H H_pinv = H_pinv", _penrose_2, of_inverse=True),
    Check("Penrose 3", "H H_pinv is symmetric", _penrose_3, of_inverse=True),
    Check("Penrose 4", "H_pinv H is symmetric", _penrose_4, of_inverse=True),
    Check("projection", "H project(x, y) = y for a y that can be reached", _projection, of_inverse=True),
    Check("norm", "norm is the largest singular value, by power iteration", _norm, 0.02),
    Check("scale", "measurement entries are of the order of pixels, in powers of ten", _scale, 1.0),
    Check("batch independence", "a sample alone, or joined anew, gives its row of the batch", _batch_independence),
    Check("stack axes", "axes between batch and channels are carried along", _stack_axes),
    Check("repeatability", "a call changes nothing: the next one gives the same", _repeatability, 0.0),
    Check("derivatives", "backward of H is H_adjoint, and so on", _derivatives),
    Check("low precision", "bfloat16 comes back as bfloat16, computed in full precision", _low_precision, 0.01),
    Check("autocast", "autocast does not lower the precision", _autocast),
    Check("float64", "after .double(), adjoint and Penrose identities hold", _double, TOLERANCES[torch.float64]),
    Check("device", "a copy on the accelerator, where there is one, gives the same", _accelerator, 1e-3),
    Check("round trip", "rebuilt from its spec, it is the same operator", _round_trip),
)
