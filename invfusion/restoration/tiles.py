"""Large images through a network of bounded memory: overlapping tiles, blended within every denoising step.

Each tile is told the part of the measurement that its own pixels make, where the operator has such a part. The blended
image is then brought in line with the whole measurement, so that what no tile can see holds too.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import OperatorError
from invfusion.operators import Measurement
from invfusion.operators.masks import MaskOperator

# Images of more pixels go through the network by tiles unless the caller says otherwise.
WHOLE_PIXELS = 1024 * 1024
TILE = 512
# Part of a tile's side that it shares with each neighbour.
OVERLAP = 0.25


class Window(NamedTuple):
    """A part of an image: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


def chosen_tile(denoiser: DenoiserLike, tile: int | None, image_shape: tuple[int, int, int]) -> int | None:
    """The side of the tiles that a request means, a multiple of the coarsest tokens, or None for the whole image."""
    _, height, width = image_shape
    if tile is None:
        tile = TILE if height * width > WHOLE_PIXELS and not getattr(denoiser, "sees_whole_image", False) else 0
    multiple = getattr(getattr(denoiser, "config", None), "coarsest_patch", 1)
    tile = -(-tile // multiple) * multiple
    return None if tile == 0 or tile >= max(height, width) else tile
