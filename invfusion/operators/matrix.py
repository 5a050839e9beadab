"""A dense matrix per sample."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators.base import Gain, LinearOperator, derived

# Squaring a matrix doubles the digits it loses: above this condition number of the Gram matrix, the SVD is used.
MAX_GRAM_CONDITION = 1e5
# Squared singular values below this share of the largest are rounding errors of a zero.
RANK_TOLERANCE = 1e-12
# How many samples of similar row counts are factorised together.
GROUP = 8
# Columns whose products are summed in float64 at once.
COLUMNS = 2**13


class MatrixOperator(LinearOperator):
    """y = A x with the image flattened as (channel, row, column).

    matrix: (B, m, D), D = C*H*W; zero rows are allowed (padding of samples with fewer rows) and handled exactly.
    Source: paper A.3.3.
    """

    kind: ClassVar[str] = "matrix"
    matrix: Tensor

    def __init__(self, image_shape: Sequence[int], matrix: Tensor) -> None:
        if matrix.ndim != 3:
            raise ShapeError(f"the matrix must be (B, m, D), got {tuple(matrix.shape)}")
        if matrix.shape[1] == 0:
            raise ShapeError("a matrix operator needs at least one row; NullOperator measures nothing")
        super().__init__(len(matrix), image_shape, matrix.shape[1:2])
        size = torch.Size(self.image_shape).numel()
        if matrix.shape[2] != size:
            raise ShapeError(
                f"a matrix for images {self.image_shape} needs {size} columns, got {tuple(matrix.shape)} = (B, m, D)"
            )
        self.register_buffer("matrix", matrix)

    @derived
    def gram_inverse(self) -> Tensor | None:
        """(H H^T)^+, (B, m, m) float64; None where rows of some sample are (nearly) dependent."""
        return gram_inverses(self.matrix)

    @derived
    def inverse(self) -> Tensor:
        """The pseudo-inverse, (B, D, m), in the operator's precision: as large as H, and needed in that case alone."""
        return pseudo_inverse(self.matrix.to(self.dtype))

    @derived
    def norm(self) -> Tensor:
        small = _small_gram(self.matrix.double())
        largest: Tensor = torch.linalg.eigvalsh(small)[:, -1]
        return largest.clamp(min=0).sqrt().to(self.dtype)

    @derived
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Left singular vectors (B, m, m) and squared singular values (B, m), zero where the rank ends."""
        matrix = self.matrix.double()
        squares, vectors = torch.linalg.eigh(matrix @ matrix.mT)
        kept = squares > RANK_TOLERANCE * squares[:, -1:]
        return vectors.to(self.dtype), (squares * kept).to(self.dtype)

    def prepare(self) -> Self:
        if self.gram_inverse is None:
            _ = self.inverse
        return self

    def _forward(self, x: Tensor) -> Tensor:
        return _apply_rows(self.matrix, x.flatten(-3))

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._as_images(_apply_rows(self.matrix.mT, y))

    def _pinv(self, y: Tensor) -> Tensor:
        if self.gram_inverse is None:
            return self._as_images(_apply_rows(self.inverse, y))
        return self._adjoint(_apply_rows(self.gram_inverse, y.double()).to(y.dtype))

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        vectors, squares = self.spectrum
        kept = squares > 0
        factors = (gain(squares.where(kept, 1).sqrt()) * kept).to(vectors.dtype)
        return _apply_rows((vectors * factors[:, None]) @ vectors.mT, y)

    def _as_images(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(*vectors.shape[:-1], *self.image_shape)


def gram_inverses(matrix: Tensor) -> Tensor | None:
    """The pseudo-inverses (B, m, m) float64 of A A^T for matrices A (B, m, D), by Cholesky factorisations; None where
    one of them is ill-conditioned.
    """
    shape = (*matrix.shape[:2], matrix.shape[1])
    inverses = torch.zeros(shape, dtype=torch.float64, device=matrix.device)
    for samples, m in _groups(matrix):
        gram_inverse, is_sound = _gram_inverse(matrix[samples, :m])
        if not bool(is_sound.all()):
            return None
        inverses[samples, :m, :m] = gram_inverse
    return inverses


def pseudo_inverse(matrix: Tensor) -> Tensor:
    """The Moore-Penrose inverses (B, D, m) of matrices (B, m, D), float32 or float64.

    A^T (A A^T)^+; samples whose rows are (nearly) dependent take the singular value decomposition.
    """
    transposed = torch.zeros_like(matrix)
    for samples, m in _groups(matrix):
        rows = matrix[samples, :m]
        gram_inverse, is_sound = _gram_inverse(rows)
        inverse = (gram_inverse.to(matrix.dtype) @ rows).mT
        if not bool(is_sound.all()):
            inverse[~is_sound] = torch.linalg.pinv(rows[~is_sound].double()).to(matrix.dtype)
        transposed[samples, :m] = inverse.mT
    return transposed.mT


def _groups(matrix: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Samples of similar row counts, which go together, so that padding with zero rows costs nothing; and the most
    rows among them.
    """
    rows = (matrix != 0).any(dim=2)
    extents = (rows * torch.arange(1, rows.shape[1] + 1, device=rows.device)).amax(dim=1)
    order = extents.argsort()
    for start in range(0, len(order), GROUP):
        samples = order[start : start + GROUP]
        yield samples, int(extents[samples].max())


def _gram_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(A A^T)^+ in float64, zero rows left out, and which of them can be relied on, (B,)."""
    gram = torch.zeros(*matrix.shape[:2], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    # In parts: a copy of the whole in float64 would be the largest thing in memory.
    for part in matrix.split(COLUMNS, dim=2):  # type: ignore[no-untyped-call]
        columns = part.double()
        gram += columns @ columns.mT
    empty = (gram.diagonal(dim1=-2, dim2=-1) == 0).to(gram.dtype)
    gram = gram + torch.diag_embed(empty)
    factor, failed = torch.linalg.cholesky_ex(gram)
    # A factor with zeros on its diagonal would raise for the whole batch.
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    gram_inverse = torch.cholesky_inverse(factor.where((failed == 0)[:, None, None], identity))
    condition = torch.linalg.matrix_norm(gram, 1) * torch.linalg.matrix_norm(gram_inverse, 1)
    is_sound = (failed == 0) & (condition < MAX_GRAM_CONDITION)
    return gram_inverse - torch.diag_embed(empty), is_sound


def _small_gram(matrix: Tensor) -> Tensor:
    wide = matrix.shape[-2] <= matrix.shape[-1]
    return matrix @ matrix.mT if wide else matrix.mT @ matrix


def _apply_rows(matrix: Tensor, vectors: Tensor) -> Tensor:
    """(B, m, D) applied to (B, *K, D) -> (B, *K, m)."""
    stacked = vectors.reshape(len(vectors), -1, vectors.shape[-1])
    result = stacked @ matrix.mT.to(vectors.dtype)
    return result.reshape(*vectors.shape[:-1], -1)
