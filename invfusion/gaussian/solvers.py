"""Solvers of (H C_p H^T + sigma_y^2 I) u = r, in which all that a Gaussian prior says about a measurement is contained.

C_p is the covariance of the image given another image with noise of precision p (p = 0: none is given). H may be of
any rank: r lies in the range of H where sigma_y = 0, and only H^T u matters. The ways, by what is smallest:

`Dense` factorises the matrix itself, of the size of the measurement: for few measured entries.
`Woodbury` factorises one of the size of the prior's rank: C_p = U E U^T + f I gives, with l = sigma_y^2 / f and
    Z = (H H^T + l I)^-1 / f, the inverse Z - Z HU (E^-1 + (HU)^T Z HU)^-1 (HU)^T Z.
`Frequencies` divides: for stationary priors and circular convolutions, which have the same eigenvectors.
`ConjugateGradients` needs only products: for large images, and stationary priors otherwise.

`variance` of each is tr(C_p - C_p H^T (H C_p H^T + sigma_y^2)^-1 H C_p) / D, the mean posterior variance.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from invfusion.errors import OperatorError
from invfusion.gaussian.covariance import Coloured, Covariance, LowRank, Stationary, given_noisy, half_weights, in_parts
from invfusion.operators.base import LinearOperator, answers_at_once
from invfusion.operators.convolution import StridedConvolution
from invfusion.operators.masks import MaskOperator
from invfusion.operators.matrix import MatrixOperator
from invfusion.rng import generator

# Pivots and powers below this share of the largest are rounding errors of a zero.
PIVOT_TOLERANCE = 1e-12
DAMPING = 1e-10
PIVOT_MARGIN = 1e-13
LOG_2_PI = math.log(2 * math.pi)
# Numbers of a batch's measured basis, or of its matrices, that are held in float64, half a GiB.
HELD = 2**26
# Numbers of matrices that are converted to float64 at once, 16 MiB, but for one matrix.
CONVERTED = 2**21

GainOfSingular = Callable[[Tensor], Tensor]


def in_float64(operator: LinearOperator) -> LinearOperator:
    """The operator with float64 arithmetic; large matrices on a CPU stay as they are, and are converted in parts where
    they are applied."""
    # A class of somebody's own may apply its matrix otherwise.
    if type(operator) is MatrixOperator:
        matrix = operator.matrix
        if len(matrix) > 1 and matrix.numel() > HELD and not matrix.is_cuda:
            return _LargeMatrix(operator.image_shape, matrix)
    return operator.with_tensors({name: tensor.double() for name, tensor in operator.tensors().items()})


class _LargeMatrix(MatrixOperator):
    """Matrices in float32 with float64 arithmetic: a copy of all would be the largest thing in memory."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def _forward(self, x: Tensor) -> Tensor:
        return self._product(self.matrix, x.flatten(-3))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._as_images(self._product(self.matrix.mT, y))

    @staticmethod
    def _product(matrix: Tensor, vectors: Tensor) -> Tensor:
        found: Tensor = _InParts.apply(matrix, vectors.reshape(len(vectors), -1, vectors.shape[-1]))  # type: ignore[no-untyped-call]
        return found.reshape(*vectors.shape[:-1], -1)


class _InParts(torch.autograd.Function):
    """Matrices (B, m, D) in float32 applied to vectors (B, K, D) in float64, (B, K, m)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, vectors: Tensor) -> Tensor:
        ctx.save_for_backward(matrix)
        step = max(CONVERTED // matrix[0].numel(), 1)
        # All parts are copied to one place: to get new memory takes longer than the products.
        place = torch.empty_like(matrix[:step], dtype=vectors.dtype)
        result = vectors.new_empty(*vectors.shape[:2], matrix.shape[1])
        for start in range(0, len(matrix), step):
            rows = slice(start, start + step)
            part = matrix[rows]
            result[rows] = vectors[rows] @ place[: len(part)].copy_(part).mT
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (matrix,) = ctx.saved_tensors
        return None, _InParts.apply(matrix.mT, gradient)  # type: ignore[no-untyped-call]


def _of_rows(operator: MatrixOperator, apply: Callable[[Tensor], Tensor]) -> Tensor:
    """What a function makes of the matrices (B, m, D) in float64, few at a time."""
    matrix = operator.matrix
    return in_parts(lambda rows: apply(matrix[rows].double()), len(matrix), matrix[0].numel(), matrix.device)


class Solver(ABC):
    """The system of B operators, float64, with noise variances (B,), of which any is positive (`is_noisy`) or none."""

    def __init__(self, covariance: Covariance, operator: LinearOperator, noise: Tensor, is_noisy: bool) -> None:
        self.covariance, self.operator, self.noise, self.is_noisy = covariance, operator, noise, is_noisy

    @abstractmethod
    def at(self, p: Tensor) -> "System":
        """The system at precisions p (B,)."""

    @cached_property
    def alone(self) -> "System":
        """The system where no noisy image is given."""
        return self.at(torch.zeros_like(self.noise))

    def in_range(self, y: Tensor) -> Tensor:
        """What of y (B, *M) lies in the range of H."""
        return self.operator.H(self.operator.H_pinv(y))

    # Of a covariance of low rank, with basis U.

    def measured_basis(self, a: Tensor) -> Tensor:
        """H U a, (B, K, *M) for coordinates a (B, K, r)."""
        return self.operator.H((a @ self._basis.mT).view(*a.shape[:2], *self.operator.image_shape))

    def seen_back(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """U^T H^T u, (B, K, r), and |H^T u|^2, (B, K), for u (B, K, *M)."""
        images = self.operator.H_adjoint(u).flatten(2)
        return images @ self._basis, images.square().sum(2)

    @property
    def _basis(self) -> Tensor:
        assert isinstance(self.covariance, LowRank)
        return self.covariance.flat_basis


class System(ABC):
    """The system of one precision for each sample."""

    @abstractmethod
    def solve(self, r: Tensor) -> Tensor:
        """u (B, K, *M) for r (B, K, *M)."""

    @abstractmethod
    def variance(self) -> Tensor:
        """The mean posterior variance of a pixel, (B,)."""

    @abstractmethod
    def log_determinant(self) -> Tensor:
        """ln det of 2 pi times the system, on the range of H, (B,)."""


# ---------------------------------------------------------------------------------------------------------------------
# Dense.


class Dense(Solver):
    """By Cholesky factorisation of n x n systems, n the largest number of measured entries in the batch.

    seen: HU, (B, n, r); gram: H H^T, (B, n, n); outside: the projector onto what lies outside the range of H,
    (B, n, n), or its diagonal where it is diagonal, (B, n); entries: where the n rows lie in a flat measurement,
    (B, n), or None where n is its length.
    """

    def __init__(self, covariance: LowRank, operator: LinearOperator, noise: Tensor, is_noisy: bool) -> None:
        super().__init__(covariance, operator, noise, is_noisy)
        self.low_rank = covariance
        self.entries = measured_entries(operator)
        self.seen, self.gram, self.outside = self._parts()
        of_each = self.outside if self.outside.ndim == 2 else self.outside.diagonal(dim1=-2, dim2=-1)
        self.n_outside = of_each.sum(1)

    @torch.no_grad()
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        operator, device = self.operator, self.noise.device
        if isinstance(operator, MaskOperator):
            assert self.entries is not None
            real = torch.arange(self.entries.shape[1], device=device) < n_measured(operator)[:, None]
            return (
                self.low_rank.flat_basis[self.entries] * real[..., None],
                torch.diag_embed(real.double()),
                (~real).double(),
            )
        if isinstance(operator, MatrixOperator):
            seen = _of_rows(operator, self.low_rank.seen_by)
            gram = _of_rows(operator, lambda matrix: matrix @ matrix.mT)
            empty = (gram.diagonal(dim1=-2, dim2=-1) == 0).double()
            if full_rank(gram + torch.diag_embed(empty)):
                return seen, gram, empty
            return seen, gram, self._projector()
        seen = seen_basis(self.low_rank, operator).flatten(2).mT
        if isinstance(operator, StridedConvolution):
            gram = circulant(operator, torch.square)
            if bool((operator.spectra.singular > 0).all()):
                return seen, gram, torch.zeros_like(gram[..., 0])
            return seen, gram, _identity(gram) - circulant(operator, torch.ones_like)
        gram = self._of_units(lambda H, units: H.H(H.H_adjoint(units)))
        return seen, (gram + gram.mT) / 2, self._projector()

    def _projector(self) -> Tensor:
        """I - H H_pinv, (B, m, m)."""
        # By the spectrum where there is one: it tells dependent rows from rounding errors of a pseudo-inverse.
        inside = self._of_units(
            lambda H, units: H.spectral(units, torch.ones_like) if H.has_spectrum else H.H(H.H_pinv(units))
        )
        return _identity(inside) - (inside + inside.mT) / 2

    def _of_units(self, apply: Callable[[LinearOperator, Tensor], Tensor]) -> Tensor:
        """What maps of the operators make of each unit measurement, (B, m, m)."""
        operator, shape = self.operator, self.operator.measurement_shape
        m = torch.Size(shape).numel()
        units = torch.eye(m, dtype=torch.float64, device=self.noise.device).view(m, *shape)

        def of(rows: slice) -> Tensor:
            some = _selected(operator, rows)
            return apply(some, units.expand(some.batch_size, m, *shape)).flatten(2)

        each = m * torch.Size(operator.image_shape).numel()
        return in_parts(of, operator.batch_size, each, self.noise.device)

    def at(self, p: Tensor) -> System:
        return self._damped(p) if answers_at_once(p) else _DenseSystem(self, p, self.alone.damping)

    @cached_property
    def alone(self) -> "_DenseSystem":
        """On an accelerator it tells what is damped at all precisions: also what is on the verge of failing, since at
        others it may be worse. What is much worse there, as where H is weakest along what varies most, is not-a-number.
        """
        nothing = torch.zeros_like(self.noise)
        return self._damped(nothing, 0.0 if answers_at_once(nothing) else PIVOT_MARGIN)

    def _damped(self, p: Tensor, margin: float = 0.0) -> "_DenseSystem":
        """The system, damped where it is too ill-conditioned. Raises `OperatorError` where that does not help."""
        system = _DenseSystem(self, p)
        weak = system.is_weak(margin)
        if not bool(weak.any()):
            return system
        system = _DenseSystem(self, p, DAMPING * weak.double())
        if bool(system.is_weak().any()):
            raise OperatorError(
                f"conditioning a Gaussian prior on measurements of the operator '{self.operator.kind}' failed: the "
                "system is not positive definite, as where H_adjoint is not the adjoint of H, or H_pinv is inexact; "
                "raise sigma_y, or give the operator a spectrum"
            )
        return system

    def in_range(self, y: Tensor) -> Tensor:
        flat = self.gather(y[:, None])
        beyond = self.outside @ flat if self.outside.ndim == 3 else self.outside[..., None] * flat
        return self.scatter(flat - beyond)[:, 0]

    def measured_basis(self, a: Tensor) -> Tensor:
        return self.scatter(self.seen @ a.mT)

    def seen_back(self, u: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.gather(u)
        return flat.mT @ self.seen, (flat * (self.gram @ flat)).sum(1)

    def gather(self, y: Tensor) -> Tensor:
        """(B, K, *M) -> (B, n, K)."""
        flat = y.flatten(2)
        if self.entries is not None:
            flat = flat.gather(2, self.entries[:, None].expand(-1, flat.shape[1], -1))
        return flat.mT

    def scatter(self, u: Tensor) -> Tensor:
        """(B, n, K) -> (B, K, *M)."""
        flat, shape = u.mT, self.operator.measurement_shape
        if self.entries is not None:
            whole = flat.new_zeros(*flat.shape[:2], torch.Size(shape).numel())
            flat = whole.scatter_add(2, self.entries[:, None].expand_as(flat), flat)
        return flat.reshape(*flat.shape[:2], *shape)


class _DenseSystem(System):
    """damping: what is added to the diagonal of ill-conditioned systems, as a share of their scale, (B,), or None."""

    def __init__(self, parts: Dense, p: Tensor, damping: Tensor | None = None) -> None:
        self.parts, self.p, self.damping = parts, p, damping
        with torch.no_grad():
            self.excess, self.floor = parts.low_rank.excess(p, given_noisy)
            matrix = torch.baddbmm(
                self.floor[:, None, None] * parts.gram, parts.seen * self.excess[:, None], parts.seen.mT
            )
            diagonal = matrix.diagonal(dim1=-2, dim2=-1)
            diagonal += parts.noise[:, None]
            # What lies outside the range of H is solved apart, so that a system of deficient rank can be factorised.
            scale = diagonal.mean(1) if diagonal.shape[1] else diagonal.sum(1)
            scale = scale.where(scale > 0, 1)
            if parts.outside.ndim == 2:
                diagonal += scale[:, None] * parts.outside
            else:
                matrix += scale[:, None, None] * parts.outside
            self.is_noisy = parts.is_noisy or damping is not None
            self.level = parts.noise
            if damping is not None:
                diagonal += (damping * scale)[:, None]
                self.level = parts.noise + damping * scale
            self.factor = factorised(matrix)
            # What the system makes of all that lies outside the range.
            self.apart = scale + self.level

    def is_weak(self, margin: float = 0.0) -> Tensor:
        """Which could not be factorised, or have a pivot below `margin` times the largest, (B,)."""
        pivots = self.factor.diagonal(dim1=-2, dim2=-1).square()
        if pivots.shape[1] == 0:
            return torch.zeros_like(self.p, dtype=torch.bool)
        return ~(pivots.amin(1) >= margin * pivots.amax(1))

    def solve(self, r: Tensor) -> Tensor:
        return self.parts.scatter(solved(self.factor, self.parts.gather(r)))

    @torch.no_grad()
    def variance(self) -> Tensor:
        """What the measurement takes is the trace of K^-1 H C_p^2 H^T. Of its parts, that of K^-1 H H^T is what the
        others leave of the trace of K^-1 K, which is the number of rows."""
        parts, low_rank, n = self.parts, self.parts.low_rank, self.factor.shape[-1]
        along = torch.linalg.solve_triangular(self.factor, parts.seen, upper=False).square().sum(1)
        left = n - (along * self.excess).sum(1) - parts.n_outside * (1 - self.level / self.apart)
        if self.is_noisy:
            inverse = torch.linalg.solve_triangular(self.factor, _identity(self.factor), upper=False)
            left = left - self.level * inverse.square().sum((1, 2))
        squares, square = low_rank.excess(self.p, lambda c, p: given_noisy(c, p).square())
        taken = (along * squares).sum(1) + square / self.floor * left
        found: Tensor = low_rank.mean_of(self.p, given_noisy) - taken / low_rank.size
        return found

    def log_determinant(self) -> Tensor:
        pivots, outside = self.factor.diagonal(dim1=-2, dim2=-1), self.parts.n_outside
        return 2 * pivots.log().sum(1) - outside * self.apart.log() + (pivots.shape[1] - outside) * LOG_2_PI


def seen_basis(covariance: LowRank, operator: LinearOperator) -> Tensor:
    """H U, (B, r, *M)."""
    return _over_samples(seen_basis_of(covariance, operator), covariance, operator)


def seen_basis_of(covariance: LowRank, operator: LinearOperator) -> Callable[[slice], Tensor]:
    """H U of some samples, as a function of which."""
    if not len(covariance.variances):
        # Not every transform takes no images at all.
        n, shape = operator.batch_size, operator.measurement_shape
        return lambda rows: covariance.basis.new_zeros(len(range(n)[rows]), 0, *shape)
    images = covariance.flat_basis.mT.reshape(len(covariance.variances), *operator.image_shape)
    if not isinstance(operator, StridedConvolution):

        def seen_by(rows: slice) -> Tensor:
            some = _selected(operator, rows)
            return some.H(images.expand(some.batch_size, *images.shape))

        return seen_by
    # The spectra of the basis are the same for all samples.
    s, (_, m, _), w = operator.stride, operator.measurement_shape, operator.image_shape[2]
    z, forward = torch.fft.rfft2(images).unflatten(-2, (s, m)), operator.spectra.forward

    def blurred_by(rows: slice) -> Tensor:
        folded = (z * forward[rows, None]).mean(dim=-3)
        found: Tensor = torch.fft.irfft2(folded, s=(m, w))[..., ::s]
        return found

    return blurred_by


def _over_samples(of: Callable[[slice], Tensor], covariance: LowRank, operator: LinearOperator) -> Tensor:
    """What a function makes of all samples: of blurs, whose measurements are nearly as large as images, few enough at a
    time to hold as many images for each as the prior has directions."""
    if isinstance(operator, StridedConvolution):
        each = len(covariance.variances) * torch.Size(operator.image_shape).numel()
        return in_parts(of, operator.batch_size, each, operator.device)
    return of(slice(0, operator.batch_size))


def _selected(operator: LinearOperator, rows: slice) -> LinearOperator:
    """The operators of some samples of a batch."""
    return operator if rows == slice(0, operator.batch_size) else operator.select(rows)


def circulant(operator: StridedConvolution, gain: GainOfSingular) -> Tensor:
    """What `spectral` makes of each unit measurement, (B, m, m): the response to one, moved to where each is."""
    c, h, w = operator.measurement_shape
    device = operator.spectra.singular.device
    unit = torch.zeros(operator.batch_size, 1, h, w, dtype=operator.dtype, device=device)
    unit[..., 0, 0] = 1
    response = operator.spectral(unit.expand(-1, c, -1, -1), gain)[:, 0]
    down, right = [(torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)) % n for n in (h, w)]
    moved = response[:, down[:, None, :, None], right[None, :, None, :]].flatten(3).flatten(1, 2)
    return torch.kron(torch.eye(c, dtype=moved.dtype, device=device)[None], moved)


def measured_entries(operator: LinearOperator) -> Tensor | None:
    """Where a mask sees, as indices into a flat image (B, n), the seen ones first; None for other operators."""
    if not isinstance(operator, MaskOperator):
        return None
    return seen_first(operator)[:, : int(n_measured(operator).max())]


def seen_first(operator: MaskOperator) -> Tensor:
    """The indices of a flat image, those that each mask shows before the others, (B, D)."""
    seen = operator.mask.expand(-1, *operator.image_shape).flatten(1)
    return seen.argsort(dim=1, descending=True, stable=True)


def n_measured(operator: MaskOperator) -> Tensor:
    """How many entries of the image each mask shows, (B,)."""
    return operator.mask.flatten(1).sum(1).long() * operator.image_shape[0]


def factorised(matrix: Tensor) -> Tensor:
    """Cholesky factors (B, n, n), not-a-number on the diagonal where a matrix cannot be factorised."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    factor.diagonal(dim1=-2, dim2=-1).masked_fill_((info > 0)[:, None], math.nan)
    return factor


def solved(factor: Tensor, r: Tensor) -> Tensor:
    """K^-1 r for the Cholesky factors of K, (B, n, n), and r (B, n, k)."""
    if answers_at_once(factor):
        return torch.cholesky_solve(r, factor)
    # By MAGMA's `potrs`, an accelerator is waited for, and a CUDA graph cannot hold it.
    half = torch.linalg.solve_triangular(factor, r, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return whole


def full_rank(gram: Tensor) -> bool:
    """Whether Gram matrices (B, n, n) can all be factorised with room to spare."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    return pivots.numel() == 0 or not bool(failed.any() | (pivots.amin(1) < PIVOT_TOLERANCE * pivots.amax(1)).any())


def _identity(like: Tensor) -> Tensor:
    """(m, m) of matrices (B, m, m)."""
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


# ---------------------------------------------------------------------------------------------------------------------
# Woodbury.


class Woodbury(Solver):
    """By Cholesky factorisation of r x r systems, r the rank of the prior; the operator needs its spectrum.

    Where one gain serves all singular values (no noise, or a mask), U^T H^T (H H^T + l)^-1 H U is computed once, else
    at each noise level. seen: for that, H U, or where it is too large to be held, what computes it for some samples.
    """

    seen: Tensor | Callable[[slice], Tensor]

    def __init__(self, covariance: LowRank, operator: LinearOperator, noise: Tensor, is_noisy: bool) -> None:
        super().__init__(covariance, operator, noise, is_noisy)
        self.low_rank = covariance
        self.is_flat = isinstance(operator, MaskOperator) or not self.is_noisy
        with torch.no_grad():
            if isinstance(operator, MaskOperator):
                self.seen_share = seen_shares(covariance.flat_basis, operator)
            elif self.is_flat:
                self.seen_share = self._in_parts(seen_basis_of(covariance, operator), lambda _: lambda q: 1 / q)
            elif self._is_large:
                self.seen = seen_basis_of(covariance, operator)
            else:
                self.seen = seen_basis(covariance, operator)

    @property
    def _is_large(self) -> bool:
        size = torch.Size(self.operator.measurement_shape).numel() * len(self.low_rank.variances) * len(self.noise)
        return isinstance(self.operator, StridedConvolution) and size > HELD

    def gram(self, power: int, level: Tensor) -> Tensor:
        """(HU)^T (H H^T + l)^-power (H H^T)^(power - 1) HU, (B, r, r), with noise; for l (B,)."""

        def gain(level: Tensor) -> GainOfSingular:
            return lambda q: q ** (power - 1) / (q.square() + aligned_to(level, q)) ** (power / 2)

        if isinstance(self.seen, Tensor):
            return _gram(self.operator, self.seen, gain(level))
        return self._in_parts(self.seen, lambda rows: gain(level[rows]))

    def _in_parts(self, seen: Callable[[slice], Tensor], gain: Callable[[slice], GainOfSingular]) -> Tensor:
        """`_gram` by few samples at a time, where nothing else needs HU, which of a batch of large images takes
        gigabytes; both functions are of which samples."""

        def of(rows: slice) -> Tensor:
            return _gram(_selected(self.operator, rows), seen(rows), gain(rows))

        return _over_samples(of, self.low_rank, self.operator)

    def at(self, p: Tensor) -> System:
        return _WoodburySystem(self, p)


def _gram(operator: LinearOperator, seen: Tensor, gain: GainOfSingular) -> Tensor:
    """U^T V diag(q gain(q))^2 V^T U, (B, r, r)."""
    if seen.shape[1] == 0:
        return seen.new_zeros(len(seen), 0, 0)
    part = operator.spectral(seen, gain).flatten(2)
    return part @ part.mT


def seen_shares(basis: Tensor, operator: MaskOperator) -> Tensor:
    """U^T M U for each mask M, (B, r, r), U orthonormal (D, r): by the pixels seen or the others, the fewer."""
    if not answers_at_once(operator.mask):
        return _shares_of_all(basis, operator)
    shares = []
    for order, n in zip(seen_first(operator), n_measured(operator).tolist(), strict=True):
        few = order[:n] if 2 * n <= len(order) else order[n:]
        rows = basis[few]
        share = rows.T @ rows
        shares.append(share if 2 * n <= len(order) else _identity(share) - share)
    return torch.stack(shares)


def _shares_of_all(basis: Tensor, operator: MaskOperator) -> Tensor:
    """What `seen_shares` gives, without asking how many pixels are seen: in few, large products."""
    mask = operator.mask.expand(-1, *operator.image_shape).flatten(1).to(basis.dtype)
    return in_parts(lambda rows: (basis.mT * mask[rows, None]) @ basis, len(mask), basis.numel(), basis.device)


class _WoodburySystem(System):
    def __init__(self, parts: Woodbury, p: Tensor) -> None:
        self.parts, self.p = parts, p
        with torch.no_grad():
            self.excess, self.floor = parts.low_rank.excess(p, given_noisy)
            self.ratio = parts.noise / self.floor
            # Scaled on both sides by the square root of E, so that directions without excess need no case of their own.
            self.root = self.excess.sqrt()
            information = self._scaled(self._seen(1)) / self.floor[:, None, None]
            diagonal = information.diagonal(dim1=-2, dim2=-1)
            diagonal += 1
            self.factor = factorised(information)

    def _seen(self, power: int) -> Tensor:
        """(HU)^T (H H^T + l)^-power (H H^T)^(power - 1) HU, (B, r, r)."""
        level = self.ratio
        if self.parts.is_flat:
            return self.parts.seen_share / (1 + level[:, None, None]) ** power
        return self.parts.gram(power, level)

    def _scaled(self, matrices: Tensor) -> Tensor:
        return matrices * self.root[:, :, None] * self.root[:, None]

    def _inverse(self, r: Tensor) -> Tensor:
        """Z r."""
        level, floor = self.ratio, aligned_to(self.floor, r)
        return self.parts.operator.spectral(r, lambda q: 1 / (q.square() + aligned_to(level, q))) / floor

    def solve(self, r: Tensor) -> Tensor:
        operator, basis = self.parts.operator, self.parts.low_rank.flat_basis
        z = self._inverse(r)
        along = operator.H_adjoint(z).flatten(2) @ basis * self.root[:, None]
        weights = solved(self.factor, along.mT).mT * self.root[:, None]
        images = (weights @ basis.mT).view(*weights.shape[:2], *operator.image_shape)
        return z - self._inverse(operator.H(images))

    @torch.no_grad()
    def variance(self) -> Tensor:
        """The floor's part by the operator's singular values, the rest by the diagonal of the factor's inverse."""
        parts, low_rank = self.parts, self.parts.low_rank
        size = low_rank.size
        q2, weights = squared_singular_values(parts.operator)
        share = q2 / (q2 + self.ratio[:, None]).where(q2 > 0, 1)
        taken = self.floor * (weights * share).sum(1)
        left = size * self.floor - taken + self._opened()
        return left / size

    def _opened(self) -> Tensor:
        """The trace of (I + R A R / f)^-1 R (I - M)^2 R, the basis as far as the measurement leaves it open, with
        R = E^(1/2), M = H^T (H H^T + l)^-1 H and A = U^T M U: (B,)."""
        half = torch.linalg.solve_triangular(self.factor, _identity(self.factor), upper=False)
        inverse = half.square().sum(1)
        # R A R / f is the factorised matrix less I, which spares another look at A.
        taken: Tensor = self.floor * (inverse.shape[1] - inverse.sum(1))
        if self.parts.is_flat:
            # M^2 = M / (1 + l) on what is seen.
            twice = taken / (1 + self.ratio)
        else:
            twice = (half * (half @ self._scaled(self._seen(2)))).sum((1, 2))
        opened: Tensor = (self.excess * inverse).sum(1) - 2 * taken + twice
        return opened

    def log_determinant(self) -> Tensor:
        q2, weights = squared_singular_values(self.parts.operator)
        noise, floor = self.parts.noise[:, None], self.floor[:, None]
        on_range = ((floor * q2 + noise).log() + LOG_2_PI).where(q2 > 0, 0)
        whole: Tensor = (weights * on_range).sum(1) + 2 * self.factor.diagonal(dim1=-2, dim2=-1).log().sum(1)
        return whole


def aligned_to(values: Tensor, like: Tensor) -> Tensor:
    """(B,) shaped to broadcast over (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def squared_singular_values(operator: LinearOperator) -> tuple[Tensor, Tensor]:
    """Squared singular values (B, n) float64, and how often each counts, (n,)."""
    channels = operator.image_shape[0]
    if isinstance(operator, MaskOperator):
        squares = operator.mask.flatten(1)
        return squares, squares.new_full((squares.shape[1],), channels)
    if isinstance(operator, StridedConvolution):
        squares = operator.spectra.singular.square()
        weights = half_weights(operator.measurement_shape[2], squares).expand(squares.shape[1:])
        return squares.flatten(1), channels * weights.flatten()
    if isinstance(operator, MatrixOperator):
        squares = operator.spectrum[1]
        return squares, squares.new_ones(squares.shape[1])
    raise OperatorError(f"the singular values of the operator '{operator.kind}' are not known")


# ---------------------------------------------------------------------------------------------------------------------
# Colours.


class Blocks(Solver):
    """Each combination of the channels by a solver of its own; for operators that treat the channels alike."""

    def __init__(self, covariance: Coloured, operator: LinearOperator, noise: Tensor, is_noisy: bool) -> None:
        super().__init__(covariance, operator, noise, is_noisy)
        self.colours = covariance.colours
        shape = (1, *operator.image_shape[1:])
        one = type(operator).from_tensors(shape, operator.tensors(), operator.attributes())
        self.solvers = [solver_for(block, one, noise, is_noisy) for block in covariance.blocks]

    def at(self, p: Tensor) -> System:
        return _BlockSystem(self.colours, [solver.at(p) for solver in self.solvers])

    @cached_property
    def alone(self) -> System:
        return _BlockSystem(self.colours, [solver.alone for solver in self.solvers])

    def in_range(self, y: Tensor) -> Tensor:
        # The range of all is the same, and mixing the channels stays in it.
        return torch.stack([self.solvers[0].in_range(part[:, None]) for part in y.unbind(1)], 1).flatten(1, 2)


class _BlockSystem(System):
    def __init__(self, colours: Tensor, systems: list[System]) -> None:
        self.colours, self.systems = colours, systems

    def solve(self, r: Tensor) -> Tensor:
        turned = torch.einsum("kc,bncij->bnkij", self.colours, r).unsqueeze(3).unbind(2)
        found = [system.solve(part) for system, part in zip(self.systems, turned, strict=True)]
        return torch.einsum("kc,bnkij->bncij", self.colours, torch.cat(found, 2))

    def variance(self) -> Tensor:
        return torch.stack([system.variance() for system in self.systems]).mean(0)

    def log_determinant(self) -> Tensor:
        return torch.stack([system.log_determinant() for system in self.systems]).sum(0)


def system_of_first(system: System) -> System:
    """Of a system by `Blocks`, that of the first combination of the channels."""
    assert isinstance(system, _BlockSystem)
    return system.systems[0]


# ---------------------------------------------------------------------------------------------------------------------
# Frequencies.


class Frequencies(Solver):
    """A stationary prior and a circular convolution: frequency by frequency of the measurement, exactly.

    Of frequency g the system is sigma_y^2 plus the mean of |kernel|^2 c over the aliases that decimation folds into g.
    """

    def __init__(self, covariance: Stationary, operator: StridedConvolution, noise: Tensor, is_noisy: bool) -> None:
        super().__init__(covariance, operator, noise, is_noisy)
        self.stationary, self.stride = covariance, operator.stride
        # The whole spectrum of the kernel as H applies it, without the frequencies that H leaves out, of which the
        # operator keeps half: (B, 1, H, W).
        half = operator.spectra.forward.flatten(-3, -2)
        self.power = torch.fft.fft2(torch.fft.irfft2(half, s=operator.image_shape[1:])).abs().square()
        # Frequencies of the measurement that H reaches, (B, 1, H/s, W/s).
        reached = self.folded(torch.ones_like(self.power))
        self.inside = reached > PIVOT_TOLERANCE * reached.amax((1, 2, 3), keepdim=True)

    def at(self, p: Tensor) -> System:
        return _FrequencySystem(self, p)

    def folded(self, spectrum: Tensor) -> Tensor:
        """The mean of |kernel|^2 times a spectrum (B, C, H, W) over aliases, (B, C, H/s, W/s)."""
        s, (_, m, w) = self.stride, self.operator.measurement_shape
        aliases: Tensor = (self.power * spectrum).reshape(len(spectrum), -1, s, m, s, w)
        return aliases.mean((2, 4))


class _FrequencySystem(System):
    def __init__(self, parts: Frequencies, p: Tensor) -> None:
        self.parts, self.p = parts, p
        self.variances = given_noisy(parts.stationary.spectrum, aligned_to(p, parts.power))
        folded = parts.folded(self.variances)
        self.level = (folded + aligned_to(parts.noise, folded)).where(parts.inside, 1)

    def solve(self, r: Tensor) -> Tensor:
        colours, shape = self.parts.stationary.colours, r.shape[-2:]
        z = torch.fft.rfft2(torch.einsum("kc,bnchw->bnkhw", colours, r))
        gain = (self.parts.inside / self.level)[:, None, ..., : z.shape[-1]]
        solved: Tensor = torch.fft.irfft2(z * gain, s=shape)
        return torch.einsum("kc,bnkhw->bnchw", colours, solved)

    def variance(self) -> Tensor:
        taken = self.parts.folded(self.variances.square()) / self.level
        left: Tensor = self.variances.mean((1, 2, 3)) - taken.sum((1, 2, 3)) / self.variances[0].numel()
        return left

    def log_determinant(self) -> Tensor:
        whole: Tensor = (self.parts.inside * (self.level.log() + LOG_2_PI)).sum((1, 2, 3))
        return whole


# ---------------------------------------------------------------------------------------------------------------------
# Conjugate gradients.

TOLERANCE = 1e-7
PROBE_TOLERANCE = 1e-2
MAX_ITERATIONS = 1000


class ConjugateGradients(Solver):
    """By products with H and the covariance, until the residual is below `TOLERANCE` of the right-hand side.

    The preconditioner W H C_p^-1 H^T W with W = (H H^T + l I)^-1 is the inverse itself where H is invertible and l = 0.
    """

    def at(self, p: Tensor) -> System:
        return _CGSystem(self, p)


class _CGSystem(System):
    def __init__(self, parts: ConjugateGradients, p: Tensor) -> None:
        self.parts, self.p = parts, p
        self.ratio = parts.noise / parts.covariance.mean_of(p, given_noisy)

    def _product(self, u: Tensor) -> Tensor:
        operator, covariance = self.parts.operator, self.parts.covariance
        image = covariance.filter(operator.H_adjoint(u), self.p, given_noisy)
        return operator.H(image) + aligned_to(self.parts.noise, u) * u

    def _preconditioned(self, r: Tensor) -> Tensor:
        operator, covariance = self.parts.operator, self.parts.covariance
        if not operator.has_spectrum:
            return r

        def damped(v: Tensor) -> Tensor:
            return operator.spectral(v, lambda q: 1 / (q.square() + aligned_to(self.ratio, q)))

        def inverse(c: Tensor, p: Tensor) -> Tensor:
            return 1 / (given_noisy(c, p) + aligned_to(self.parts.noise, p))

        return damped(operator.H(covariance.filter(operator.H_adjoint(damped(r)), self.p, inverse)))

    def solve(self, r: Tensor) -> Tensor:
        return self._solve(r, TOLERANCE)

    def _solve(self, r: Tensor, tolerance: float) -> Tensor:
        # What lies outside the range of H is lost on the way back to an image.
        r = self.parts.operator.H(self.parts.operator.H_pinv(r))
        u, residual = torch.zeros_like(r), r
        z = self._preconditioned(residual)
        direction, energy = z, _inner(residual, z)
        goal = tolerance * _inner(r, r).sqrt()
        for _ in range(MAX_ITERATIONS):
            reached = _inner(residual, residual).sqrt()
            if bool((reached <= goal).all()):
                return u
            product = self._product(direction)
            # Systems that are solved already stay where they are: their steps would be zero over zero.
            step = energy / _inner(direction, product).where(reached > goal, 1)
            step = step.where(reached > goal, 0)
            u, residual = u + step * direction, residual - step * product
            z = self._preconditioned(residual)
            energy, before = _inner(residual, z), energy
            direction = z + energy / before.where(before > 0, 1) * direction
        worst = float((_inner(residual, residual) / _inner(r, r)).sqrt().nan_to_num().max())
        raise OperatorError(
            f"conditioning a Gaussian prior on measurements of the operator '{self.parts.operator.kind}' did not "
            f"converge: after {MAX_ITERATIONS} steps of conjugate gradients the relative residual is {worst:.1e}, and "
            f"{tolerance:.0e} is asked for; raise the prior's floor or sigma_y, or use a prior of low rank"
        )

    @torch.no_grad()
    def variance(self) -> Tensor:
        """Hutchinson's estimate with one fixed probe; systems of this solver have many directions to average over."""
        operator, covariance = self.parts.operator, self.parts.covariance
        signs = torch.randint(2, operator.image_shape, generator=generator(0, "gaussian/probe")) * 2.0 - 1
        probe = signs.to(self.p).expand(operator.batch_size, 1, *operator.image_shape)
        open_prior = covariance.filter(probe, self.p, given_noisy)
        seen = operator.H(open_prior)
        taken = _inner(seen, self._solve(seen, PROBE_TOLERANCE)).flatten()
        return covariance.mean_of(self.p, given_noisy) - taken / torch.Size(operator.image_shape).numel()

    def log_determinant(self) -> Tensor:
        raise OperatorError(
            f"the log-evidence of measurements of the operator '{self.parts.operator.kind}' is not known by conjugate "
            "gradients; it needs a prior of low rank, or a stationary one and a circular blur"
        )


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Of each system, (B, K, 1, ...)."""
    return (a * b).sum(tuple(range(2, a.ndim)), keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------

# Up to so many measured entries, a dense system is factorised even where the rank is smaller; and up to so many where
# the singular values of the operator are not known.
SMALL, MODERATE = 64, 1024


def asks_for_values(covariance: Covariance, operator: LinearOperator) -> bool:
    """Whether on an accelerator the solver looks at numbers, and so waits for it."""
    if 0 in operator.measurement_shape:
        return False
    if isinstance(covariance, LowRank):
        return not isinstance(operator, MaskOperator | StridedConvolution)
    return not (isinstance(covariance, Stationary) and isinstance(operator, StridedConvolution))


def solver_for(covariance: Covariance, operator: LinearOperator, noise: Tensor, is_noisy: bool) -> Solver:
    """The cheapest solver; the operator in float64, the variances `noise` (B,), any of them positive or none.

    On an accelerator, masks and blurs have the one that asks for no values, since waiting costs more than it saves.
    """
    if isinstance(covariance, Stationary) and isinstance(operator, StridedConvolution):
        return Frequencies(covariance, operator, noise, is_noisy)
    if not isinstance(covariance, LowRank):
        return ConjugateGradients(covariance, operator, noise, is_noisy)
    if isinstance(covariance, Coloured) and isinstance(operator, MaskOperator | StridedConvolution):
        return Blocks(covariance, operator, noise, is_noisy)
    if isinstance(operator, MaskOperator | StridedConvolution) and not answers_at_once(noise):
        return Woodbury(covariance, operator, noise, is_noisy)
    measured = torch.Size(operator.measurement_shape).numel()
    if isinstance(operator, MaskOperator):
        measured = int(n_measured(operator).max())
    if measured <= max(len(covariance.variances), SMALL):
        return Dense(covariance, operator, noise, is_noisy)
    if isinstance(operator, MaskOperator | StridedConvolution | MatrixOperator):
        return Woodbury(covariance, operator, noise, is_noisy)
    if measured <= MODERATE:
        return Dense(covariance, operator, noise, is_noisy)
    return ConjugateGradients(covariance, operator, noise, is_noisy)
