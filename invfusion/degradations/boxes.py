"""One rectangle per sample: everything outside it is lost (out-painting), or everything inside (in-painting)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.operators.masks import MaskOperator


class BoxOutpainting(DegradationFamily):
    """Only a random rectangle is visible. Source: paper A.3.4."""

    kind: Literal["box_outpainting"] = "box_outpainting"

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> MaskOperator:
        return MaskOperator(image_shape, rectangles(batch_size, image_shape, generator))


class BoxInpainting(DegradationFamily):
    """A random rectangle, of the same law as in out-painting, is missing. Source: paper section 5."""

    kind: Literal["box_inpainting"] = "box_inpainting"

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> MaskOperator:
        return MaskOperator(image_shape, 1 - rectangles(batch_size, image_shape, generator))


def rectangles(batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Masks (B, 1, H, W) of one rectangle each, at least one pixel large; edges uniform per axis."""
    h, w = checked_sides(batch_size, image_shape)
    rows = _intervals(batch_size, h, generator)
    columns = _intervals(batch_size, w, generator)
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def _intervals(batch_size: int, n: int, generator: torch.Generator) -> Tensor:
    """(B, n) bool: the pixels between two distinct edges drawn uniformly from {0, ..., n}."""
    first = torch.randint(0, n + 1, (batch_size, 1), generator=generator)
    other = torch.randint(0, n, (batch_size, 1), generator=generator)
    second = other + (other >= first)
    pixels = torch.arange(n)
    return (pixels >= torch.minimum(first, second)) & (pixels < torch.maximum(first, second))
