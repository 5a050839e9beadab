"""Dead leaves: random discs that cover each other, images with the edges and the power spectrum of photographs.

Nobody has a right in them, and there is no end of them: image i of a seed is the same everywhere.
"""

import colorsys
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from invfusion.data.sources.base import Listing, SourceImage
from invfusion.rng import generator
from invfusion.schema import Config

# Drawn larger than wanted, then averaged: the edges of the leaves.
OVERSAMPLING = 2
# After so many leaves, what is still free is background.
MAX_LEAVES = 20_000
CHECKED_EVERY = 256


class DeadLeaves(Config):
    """n_images squares of discs, the i-th from (seed, i) alone, so that a larger number continues a smaller one.

    Radii follow r^-3 between min_radius and max_radius (in pixels; as a share of the size for the larger one), as the
    sizes of things in photographs do. Source: Lee, Mumford & Huang 2001; for restorers Achddou et al. 2021.
    """

    kind: Literal["dead_leaves"] = "dead_leaves"
    n_images: int = Field(default=10_000, ge=1)
    size: int = Field(default=128, ge=8)
    seed: int = Field(default=0, ge=0)
    min_radius: float = Field(default=3.0, gt=0)
    max_radius: float = Field(default=0.5, gt=0, le=1)

    def open(self) -> Listing:
        """All images, keyed by seed and number."""
        return Listing(
            description=f"dead leaves, seed {self.seed}",
            licence="none needed: drawn by this program",
            images=self._images(),
            n_images=self.n_images,
        )

    def _images(self) -> Iterator[SourceImage]:
        for number in range(self.n_images):
            key = f"leaves{self.seed}-{number:08d}"
            yield SourceImage(key, key, Image.fromarray(self.draw(number)))

    def draw(self, number: int) -> NDArray[np.uint8]:
        """One image, (size, size, 3)."""
        draws = generator(self.seed, "dead_leaves", number)
        side = self.size * OVERSAMPLING
        canvas = np.zeros((side, side, 3), np.float32)
        free = np.ones((side, side), bool)
        smallest, largest = OVERSAMPLING * self.min_radius, side * self.max_radius
        palette = _palette(draws)
        for i, u in enumerate(torch.rand(MAX_LEAVES, 7, generator=draws).tolist()):
            # Radii by the inverse of their distribution function; centres so that leaves overlap the borders too.
            radius = (smallest**-2 - u[0] * (smallest**-2 - largest**-2)) ** -0.5
            centre = [(side + 2 * radius) * value - radius for value in u[1:3]]
            _cover(canvas, free, centre, radius, palette[int(u[3] * len(palette))] + 0.06 * (u[4] - 0.5), u[5:])
            if i % CHECKED_EVERY == 0 and not free.any():
                break
        canvas[free] = palette[0]
        fine = canvas.reshape(self.size, OVERSAMPLING, self.size, OVERSAMPLING, 3).mean((1, 3))
        pixels: NDArray[np.uint8] = np.rint(255 * fine.clip(0, 1)).astype(np.uint8)
        return pixels


def _palette(draws: torch.Generator) -> NDArray[np.float32]:
    """32 colours of one scene, (32, 3): a few hues, weakly saturated, of all lightnesses."""
    hue, spread = torch.rand(2, generator=draws).tolist()
    numbers = torch.rand(32, 3, generator=draws).tolist()
    colours = [
        colorsys.hls_to_rgb((hue + (0.1 + 0.4 * spread) * (h - 0.5)) % 1, 0.03 + 0.94 * light, 0.6 * saturation**2)
        for h, light, saturation in numbers
    ]
    return np.array(colours, np.float32)


def _cover(
    canvas: NDArray[np.float32],
    free: NDArray[np.bool_],
    centre: list[float],
    radius: float,
    colour: NDArray[Any],
    shading: list[float],
) -> None:
    """Put a disc behind those that are already there: it fills what is free. Shaded along a random direction."""
    side = len(free)
    top, left = (max(0, math.floor(c - radius)) for c in centre)
    bottom, right = (min(side, math.ceil(c + radius) + 1) for c in centre)
    area = np.s_[top:bottom, left:right]
    if not free[area].any():
        return
    rows = (np.arange(top, bottom, dtype=np.float32)[:, None] - centre[0]) / radius
    columns = (np.arange(left, right, dtype=np.float32)[None] - centre[1]) / radius
    inside = (rows**2 + columns**2 <= 1) & free[area]
    slope = 0.3 * shading[0] * (math.cos(7 * shading[1]) * rows + math.sin(7 * shading[1]) * columns)
    canvas[area][inside] = (colour + slope[..., None])[inside]
    free[area][inside] = False
