"""Random matrices with a random number of rows."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.operators.matrix import MatrixOperator


class RandomMatrix(DegradationFamily):
    """Per sample, m ~ Uniform{min_rows, ..., max_rows} standard normal rows, each scaled to unit norm.

    Rows m.. up to max_rows are zero, so that samples share one measurement length. Source: paper A.3.3.
    """

    kind: Literal["matrix"] = "matrix"
    min_rows: int = Field(default=2, ge=1)
    max_rows: int = Field(default=128, ge=1)

    @property
    def is_nonnegative(self) -> bool:
        return False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows ({self.min_rows}) must not exceed max_rows ({self.max_rows})")
        return self

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> MatrixOperator:
        checked_sides(batch_size, image_shape)
        counts = torch.randint(self.min_rows, self.max_rows + 1, (batch_size,), generator=generator)
        matrix = torch.zeros(batch_size, self.max_rows, torch.Size(image_shape).numel())
        # In place: at 64 pixels a batch takes hundreds of megabytes.
        for sample, m in zip(matrix, counts.tolist(), strict=True):
            rows = sample[:m].normal_(generator=generator)
            rows /= torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return MatrixOperator(image_shape, matrix)
