"""What an operator that knows only H can still do: its adjoint by differentiation, its inverses by conjugate gradients.

Every vector (B, *K) of a batch is its own system: it stops by itself, so that no result depends on a neighbour.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from invfusion.errors import OperatorError

Map = Callable[[Tensor], Tensor]

# Allowed residuals, relative: |A z - b| / |b| of a system, |H^T r| / |H^T y| of a least-squares problem.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}
# A residual this many times larger is worth a warning.
NOTABLE = 100
POWER_ITERATIONS = 200


class Solution(NamedTuple):
    """value: what solves the systems; residual: relative, of each, (B, *K); n_iterations: of the slowest."""

    value: Tensor
    residual: Tensor
    n_iterations: int


def conjugate_gradients(
    apply: Map,
    b: Tensor,
    n_axes: int,
    *,
    max_iterations: int,
    precondition: Map | None = None,
    tolerance: float | None = None,
    start: Tensor | None = None,
) -> Solution:
    """Solve A z = b for symmetric positive definite A on the last `n_axes` axes of b, (B, *K, *M).

    precondition: a symmetric positive definite approximation of the inverse of A. tolerance: the relative residual at
    which a system is solved, by default that of its precision (`TOLERANCES`). start: z to begin with, by default zero.
    Source: Hestenes & Stiefel 1952; preconditioned as in Golub & Van Loan, Algorithm 11.5.1.
    """
    inner, spread = _inner_product(n_axes), _spread(n_axes)
    z, r = (torch.zeros_like(b), b) if start is None else (start, b - apply(start))
    w = r if precondition is None else precondition(r)
    p, rho, size = w, inner(r, w), inner(b, b)
    bound, n = (tolerance or _tolerance(b)) ** 2 * size, 0
    for n in range(max_iterations + 1):
        active = inner(r, r) > bound
        if n == max_iterations or not bool(active.any()):
            break
        q = apply(p)
        curvature = inner(p, q)
        step = spread(_quotient(rho, curvature, active & (curvature > 0)))
        z, r = z + step * p, r - step * q
        w = r if precondition is None else precondition(r)
        rho, before = inner(r, w), rho
        p = w + spread(_quotient(rho, before, active)) * p
    return Solution(z + 0 * spread(size), _relative(inner(r, r), size), n)


def least_squares(H: Map, H_adjoint: Map, y: Tensor, axes: tuple[int, int], *, max_iterations: int) -> Solution:
    """The shortest x among those that minimise |H x - y|: H_pinv(y), whatever the rank of H; y is (B, ...).

    axes: how many trailing axes an image and a measurement have. Source: CGLS (Hestenes & Stiefel 1952, section 10).
    """
    inner_x, inner_y = (_inner_product(n) for n in axes)
    spread_x, spread_y = (_spread(n) for n in axes)
    r, s = y, H_adjoint(y)
    x, p, gamma = torch.zeros_like(s), s, inner_x(s, s)
    size, bound, n = gamma, _tolerance(y) ** 2 * gamma, 0
    for n in range(max_iterations + 1):
        active = gamma > bound
        if n == max_iterations or not bool(active.any()):
            break
        q = H(p)
        curvature = inner_y(q, q)
        step = _quotient(gamma, curvature, active & (curvature > 0))
        x, r = x + spread_x(step) * p, r - spread_y(step) * q
        s = H_adjoint(r)
        gamma, before = inner_x(s, s), gamma
        p = s + spread_x(_quotient(gamma, before, active)) * p
    # Comparisons with not-a-number are false, and would stop at a clean zero.
    return Solution(x + 0 * spread_x(inner_y(y, y)), _relative(gamma, size), n)


def adjoint_by_differentiation(H: Map, y: Tensor, image: tuple[int, ...]) -> Tensor:
    """H^T y, the vector-Jacobian product of the linear map H at any image; `image`: the shape (B, *K, C, H, W)."""
    # The result of a graph kept in vain would hold its memory.
    differentiable = torch.is_grad_enabled() and (y.requires_grad or H(y.new_zeros(image)).requires_grad)
    with torch.inference_mode(False), torch.enable_grad():
        y = y.clone() if y.is_inference() else y
        at = y.new_zeros(image).requires_grad_()
        seen = H(at)
        if not seen.requires_grad:
            raise OperatorError("H is cut off from the graph of derivatives, so its adjoint must be given: H_adjoint")
        result: Tensor = torch.autograd.grad(seen, at, y, create_graph=differentiable)[0]
    return result


def largest_singular_value(H: Map, H_adjoint: Map, start: Tensor) -> Tensor:
    """(B,): power iteration from images `start` (B, C, H, W), until it changes by less than 1e-5; from below."""
    x, value = start, start.new_zeros(len(start))
    for _ in range(POWER_ITERATIONS):
        x = x / _norm(x).clamp(min=torch.finfo(x.dtype).tiny).view(-1, 1, 1, 1)
        before, value = value, _norm(H(x))
        if bool(((value - before).abs() <= 1e-5 * value).all()):
            break
        x = H_adjoint(H(x))
    return value


class LinearSolve(torch.autograd.Function):
    """A linear map given as a procedure, differentiated through its transpose instead of its iterations."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, solve: Map, transposed: Map) -> Tensor:
        ctx.maps = solve, transposed
        return solve(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        solve, transposed = ctx.maps
        return LinearSolve.apply(gradients[0], transposed, solve), None, None  # type: ignore[no-untyped-call]


class DampedSolve(torch.autograd.Function):
    """z = A^-1 y with A = H H^T + lam: dz = A^-1 (dy - z dlam), for lam (B,)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, lam: Tensor, solve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        z = solve(y, lam)
        ctx.save_for_backward(z, lam)
        ctx.solve = solve
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        z, lam = ctx.saved_tensors
        w = DampedSolve.apply(gradients[0], lam, ctx.solve)  # type: ignore[no-untyped-call]
        return w, -(z * w).flatten(1).sum(dim=1).to(lam.dtype), None


class ImplicitSolve(torch.autograd.Function):
    """Zeros that pass a gradient on through `solve`: added to a solution, they make it differentiable."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, solve: Map) -> Tensor:
        ctx.solve = solve
        return torch.zeros_like(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.solve(gradients[0]), None


def warn_unless_converged(solution: Solution, what: str) -> Tensor:
    """The solution's value; a warning with figures where some system stopped far from its solution."""
    tolerated = NOTABLE * _tolerance(solution.value)
    worst = float(solution.residual.max()) if solution.residual.numel() else 0.0
    if worst > tolerated and math.isfinite(worst):
        warnings.warn(
            f"{what} stopped after {solution.n_iterations} conjugate-gradient steps at the relative residual "
            f"{worst:.1e} ({tolerated:.0e} tolerated): the operator is ill-conditioned. Damp it, or raise its "
            "max_iterations",
            RuntimeWarning,
            stacklevel=5,
        )
    return solution.value


def _tolerance(like: Tensor) -> float:
    return TOLERANCES.get(like.dtype, TOLERANCES[torch.float32])


def _inner_product(n_axes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """(B, *K, *M) twice -> (B, *K)."""
    trailing = tuple(range(-n_axes, 0))
    return lambda a, b: (a * b).sum(dim=trailing) if trailing else a * b


def _spread(n_axes: int) -> Map:
    """(B, *K) -> (B, *K, 1, ..., 1)."""
    return lambda scalar: scalar.reshape(*scalar.shape, *[1] * n_axes)


def _quotient(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """a / b where valid, else 0: a system that has stopped stays as it is."""
    return torch.where(valid, a / torch.where(valid, b, 1), 0)


def _relative(square: Tensor, size: Tensor) -> Tensor:
    return (square / torch.where(size > 0, size, 1)).sqrt()


def _norm(x: Tensor) -> Tensor:
    value: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return value
