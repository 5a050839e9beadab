"""Compressed sensing without a stored matrix: random signs, a fast orthonormal transform, a choice of its entries."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators.base import Gain, LinearOperator, aligned, checked_binary, checked_image_shape, derived

Transform = Literal["dct", "hadamard"]


class CompressedSensing(LinearOperator):
    """y = m entries of T (signs * x), with x flattened as (channel, row, column) and T orthonormal; (m,).

    signs: (B, D) of -1 and 1; chosen: (B, D) of 0 and 1, with m ones in each sample; D = C*H*W.
    transform: "dct" (type II, any D) or "hadamard" (D a power of two). The rows of H are orthonormal, so that all
    singular values are 1. Time is that of the transform, memory linear in the image.
    """

    kind: ClassVar[str] = "compressed_sensing"
    signs: Tensor
    chosen: Tensor

    def __init__(self, image_shape: Sequence[int], signs: Tensor, chosen: Tensor, transform: Transform = "dct") -> None:
        size = math.prod(checked_image_shape(image_shape))
        if transform not in get_args(Transform):
            raise OperatorError(f"transform must be dct or hadamard, got {str(transform)[:40]!r}")
        if transform == "hadamard" and size & (size - 1):
            raise ShapeError(f"the Hadamard transform needs a power of two of numbers, not {size}: take 'dct'")
        if signs.ndim != 2 or signs.shape[1] != size or chosen.shape != signs.shape:
            raise ShapeError(
                f"signs and chosen of images {tuple(image_shape)} must be (B, {size}), "
                f"got {tuple(signs.shape)} and {tuple(chosen.shape)}"
            )
        chosen = checked_binary(chosen, "the choice of entries", "1 is measured")
        counts = chosen.sum(dim=1)
        if not bool((counts == counts[:1]).all()):
            raise OperatorError(f"every sample must measure as many entries, got {counts.tolist()[:8]}")
        super().__init__(len(signs), image_shape, (int(counts[0]) if len(counts) else 0,))
        self.transform = transform
        self.register_buffer("signs", signs)
        self.register_buffer("chosen", chosen)
        self.check_values()

    @derived
    def entries(self) -> Tensor:
        """(B, m): the numbers of the measured entries."""
        return self.chosen.nonzero()[:, 1].view(self.batch_size, -1)

    def _forward(self, x: Tensor) -> Tensor:
        mixed = x.flatten(-3) * aligned(self.signs.to(x.dtype), x.ndim - 2)
        entries = aligned(self.entries, x.ndim - 2)
        whole = self._transformed(mixed)
        return whole.gather(-1, entries.expand(*whole.shape[:-1], entries.shape[-1]))

    def _adjoint(self, y: Tensor) -> Tensor:
        whole = y.new_zeros(*y.shape[:-1], self.signs.shape[1])
        whole = whole.scatter(-1, aligned(self.entries, y.ndim).expand(y.shape), y)
        mixed = _dct_inverse(whole) if self.transform == "dct" else _hadamard(whole)
        images = mixed * aligned(self.signs.to(y.dtype), y.ndim)
        return images.reshape(*y.shape[:-1], *self.image_shape)

    def _pinv(self, y: Tensor) -> Tensor:
        return self._adjoint(y)

    def _spectral(self, y: Tensor, gain: Gain) -> Tensor:
        return y * aligned(gain(torch.ones(len(y), 1, dtype=y.dtype, device=y.device)), y.ndim)

    def _transformed(self, vectors: Tensor) -> Tensor:
        return _dct(vectors) if self.transform == "dct" else _hadamard(vectors)

    @property
    def norm(self) -> Tensor:
        """Largest singular value of each operator, (B,)."""
        some = float(self.measurement_shape[0] > 0)
        return torch.full((self.batch_size,), some, dtype=self.dtype, device=self.device)

    def attributes(self) -> dict[str, Any]:
        return {"transform": self.transform}

    def check_values(self) -> None:
        checked_binary((self.signs + 1) / 2, "(signs + 1) / 2", "1 keeps the sign")
        checked_binary(self.chosen, "the choice of entries", "1 is measured")


def _hadamard(vectors: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform, its own inverse, of the last axis, whose length is a power of two."""
    n, step, z = vectors.shape[-1], 1, vectors
    while step < n:
        a, b = z.reshape(*z.shape[:-1], -1, 2, step).unbind(-2)
        z = torch.stack([a + b, a - b], dim=-2).flatten(-3)
        step *= 2
    return z / math.sqrt(n)


def _dct(vectors: Tensor) -> Tensor:
    """The orthonormal discrete cosine transform of type II of the last axis (Makhoul 1980)."""
    n = vectors.shape[-1]
    folded = torch.cat([vectors[..., ::2], vectors[..., 1::2].flip(-1)], dim=-1)
    z = torch.fft.fft(folded) * _twiddle(n, vectors)
    result: Tensor = z.real * _weights(n, vectors)
    return result


def _dct_inverse(vectors: Tensor) -> Tensor:
    """The transpose, and so the inverse, of `_dct`."""
    n = vectors.shape[-1]
    z = torch.fft.fft(vectors * _weights(n, vectors) * _twiddle(n, vectors)).real
    result = torch.empty_like(z)
    half = (n + 1) // 2
    result[..., ::2], result[..., 1::2] = z[..., :half], z[..., half:].flip(-1)
    return result


def _twiddle(n: int, like: Tensor) -> Tensor:
    angle = torch.arange(n, dtype=torch.float64, device=like.device) * (-math.pi / (2 * n))
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype.to_complex())


def _weights(n: int, like: Tensor) -> Tensor:
    weights = torch.full((n,), math.sqrt(2 / n), dtype=torch.float64, device=like.device)
    weights[:1] = math.sqrt(1 / n)
    return weights.to(like.dtype)
