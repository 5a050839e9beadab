"""In-painting of strokes, as a pen leaves them."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.operators.inpainting import Inpainting

Share = Annotated[float, Field(gt=0, le=1)]


class Scribble(DegradationFamily):
    """Random poly-lines are missing.

    Per sample, a number of strokes uniform over `strokes`, each of `segments` straight pieces whose lengths are at most
    `reach` of the image's shorter side and whose direction turns by up to a right angle; thickness is uniform over
    `thickness`, in shares of that side (at least one pixel).
    """

    kind: Literal["scribble"] = "scribble"
    strokes: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (2, 5)
    segments: Annotated[int, Field(ge=1)] = 6
    reach: Share = 0.3
    thickness: tuple[Share, Share] = (0.03, 0.1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("strokes", "thickness"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (low, high) with low <= high, got {(low, high)}")
        return self

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> Inpainting:
        h, w = checked_sides(batch_size, image_shape)
        masks = [self._draw(h, w, generator) for _ in range(batch_size)]
        return Inpainting(image_shape, torch.stack(masks).float())

    def _draw(self, h: int, w: int, generator: torch.Generator) -> Tensor:
        """(H, W) bool: what the strokes cover."""
        side = min(h, w)
        n = int(torch.randint(self.strokes[0], self.strokes[1] + 1, (), generator=generator))
        u = torch.rand(n, self.segments, 2, generator=generator, dtype=torch.float64)
        start = torch.rand(n, 1, 2, generator=generator, dtype=torch.float64) * torch.tensor([h, w])
        first = 2 * math.pi * torch.rand(n, 1, generator=generator, dtype=torch.float64)
        heading = first + ((u[..., 0] - 0.5) * math.pi).cumsum(dim=1)
        step = torch.stack([heading.sin(), heading.cos()], dim=-1) * (u[..., 1:] * self.reach * side)
        points = torch.cat([start, start + step.cumsum(dim=1)], dim=1)
        low, high = self.thickness
        thickness = side * (low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64))
        return _covered(points, (thickness / 2).clamp(min=0.5), h, w)


def _covered(points: Tensor, radius: Tensor, h: int, w: int) -> Tensor:
    """The pixels within `radius` (n,) of the poly-lines `points` (n, k, 2), given as (row, column)."""
    rows = torch.arange(h, dtype=torch.float64) + 0.5
    columns = torch.arange(w, dtype=torch.float64) + 0.5
    mask = torch.zeros(h, w, dtype=torch.bool)
    for line, r in zip(points, radius, strict=True):
        for a, b in pairwise(line):
            along = b - a
            y, x = rows[:, None] - a[0], columns - a[1]
            t = ((y * along[0] + x * along[1]) / along.square().sum().clamp(min=1e-12)).clamp(0, 1)
            mask |= (y - t * along[0]).square() + (x - t * along[1]).square() <= r * r
    return mask
