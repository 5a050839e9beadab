"""Large images through a network of bounded memory: overlapping tiles, blended within every denoising step.

Each tile is told the part of the measurement that its own pixels make, where the operator has such a part. The blended
image is then brought in line with the whole measurement, so that what no tile can see holds too.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import ConfigError, ShapeError
from invfusion.operators import Bayer, Blur, Downsampling, Grayscale, MaskOperator, Measurement

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


def chosen_tile(denoiser: DenoiserLike, tile: int | None, measurement: Measurement) -> tuple[int, int] | None:
    """Height and width of the tiles that a request means, or None for the whole image.

    They are multiples of the coarsest tokens and of the operator's factor. A model whose prior is of one size of images
    sees tiles of that size, whatever is asked for. Raises `ConfigError` where a blur reaches beyond the tiles that are.
    """
    height, width = measurement.operator.image_shape[1:]
    config = getattr(denoiser, "config", None)
    if getattr(denoiser, "prior", None) is not None and config is not None:
        own: tuple[int, int] = config.image_shape[1:]
        return None if own == (height, width) else own
    if tile is None:
        tile = (
            usual_tile(measurement)
            if height * width > WHOLE_PIXELS and not getattr(denoiser, "sees_whole_image", False)
            else 0
        )
    elif 0 < tile < reach_of(measurement):
        raise ConfigError(
            f"tile={tile} is less than the {reach_of(measurement)} pixels of the blur's kernel; ask for more"
        )
    multiple = math.lcm(getattr(config, "coarsest_patch", 1), factor_of(measurement))
    sides = fitted(tile, multiple, (height, width))
    return None if sides in ((0, 0), (height, width)) else sides


def fitted(tile: int, multiple: int, image: tuple[int, int]) -> tuple[int, int]:
    """Height and width of tiles of this side, rounded up to a multiple, that are no larger than the image."""
    side = -(-tile // multiple) * multiple
    return min(side, image[0]), min(side, image[1])


def factor_of(measurement: Measurement) -> int:
    """Pixels on whose multiples the windows of an operator must begin."""
    if isinstance(measurement.operator, Bayer):
        return 2
    return measurement.operator.factor if isinstance(measurement.operator, Downsampling) else 1


def usual_tile(measurement: Measurement) -> int:
    """Side of the smallest tiles that an operator's windows are worth: `TILE`, or a few times as far as a blur reaches,
    so far as memory allows."""
    reach = reach_of(measurement)
    return max(TILE, 2 * reach, min(4 * reach, 2 * TILE))


def reach_of(measurement: Measurement) -> int:
    """Pixels along a side that an entry of y sees, where that is what keeps tiles from being small."""
    return max(measurement.operator.kernel.shape[-2:]) if isinstance(measurement.operator, Blur) else 1


def evenly(tile: int, multiple: int, image: tuple[int, int], overlap: int) -> tuple[int, int]:
    """Height and width of the smallest tiles that cover an image with this overlap and are no more than those of side
    `tile` would be: the last of a row then covers little that others do.
    """
    sides = []
    for n in image:
        count = max(1, -(-(n - overlap) // (tile - overlap)))
        sides.append(-(-(n + (count - 1) * overlap) // count))
    return fitted(sides[0], multiple, image)[0], fitted(sides[1], multiple, image)[1]


def windows(
    image: tuple[int, int], tile: tuple[int, int], multiple: int = 1, overlap: int | None = None
) -> Iterator[Window]:
    """Overlapping windows of one size that cover an image; their borders lie on multiples, as the image's own must.

    overlap: pixels that neighbours share at least; None for the part OVERLAP of their side.
    Raises `ShapeError` where the image is smaller than a tile.
    """
    (height, width), (high, wide) = image, tile
    if high > height or wide > width:
        raise ShapeError(f"an image of {height}x{width} pixels is smaller than the {high}x{wide} that this model sees")
    for top in starts(height, high, multiple, overlap):
        for left in starts(width, wide, multiple, overlap):
            yield Window(top, top + high, left, left + wide)


def starts(n: int, side: int, multiple: int, overlap: int | None = None) -> list[int]:
    """First pixels of the windows along one axis; the last window ends where the image does."""
    apart = int(side * (1 - OVERLAP)) if overlap is None else side - overlap
    step = max(multiple, apart // multiple * multiple)
    return [*range(0, n - side, step), n - side]


def blended(
    x: Tensor,
    tile: tuple[int, int],
    multiple: int,
    function: Callable[[Tensor, Window], Tensor],
    overlap: int | None = None,
) -> Tensor:
    """A function of images (B, C, H, W) to such images, by tiles that overlap as `windows` says."""
    total, weights = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
    height, width = x.shape[-2:]
    for window in windows((height, width), tile, multiple, overlap):
        rows, columns = window.area
        part = x[..., rows, columns].contiguous()
        weight = torch.outer(*(ramp(n, x) for n in part.shape[-2:]))
        total[..., rows, columns] += weight * function(part, window)
        weights[rows, columns] += weight
    return total / weights


class TiledDenoiser(nn.Module):
    """D(x, sigma) of a large image, tile by tile; called like the denoiser within.

    tile: height and width of the tiles; measurement: the whole image's, which the calls are then about.
    """

    def __init__(self, denoiser: DenoiserLike, tile: tuple[int, int], measurement: Measurement) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.tile = tile
        self.tile_of = local_rule(measurement) if reach_of(measurement) <= min(tile) else None
        self.multiple = factor_of(measurement)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W) at noise levels sigma (B,) or () -> (B, C, H, W) float32."""

        def denoised(tile: Tensor, window: Window) -> Tensor:
            known = None if measurement is None or self.tile_of is None else self.tile_of(measurement, window)
            return self.denoiser(tile, sigma, known, class_labels)

        whole = blended(x, self.tile, self.multiple, denoised)
        return whole if measurement is None else self._consistent(whole, sigma, measurement)

    def _consistent(self, x: Tensor, sigma: Tensor, measurement: Measurement) -> Tensor:
        """The blended image (B, C, H, W) in line with y as a whole: x + H^T (H H^T + sigma_y^2 / r^2)^-1 (y - Hx).

        r^2 = sigma^2 / (1 + sigma^2) is what the noisy image leaves open, as in PiGDM. Where the tiles knew their part
        of a noisy y, it has been used already.
        """
        noisy = measurement.sigma_y > 0
        if self.tile_of is not None and bool(noisy.all()):
            return x
        operator, s2 = measurement.operator, sigma.to(x.dtype).square()
        gap = measurement.y - operator.H(x)
        moved = x + operator.H_adjoint(operator.damped_inverse(gap, measurement.sigma_y.square() * (1 + s2) / s2))
        return moved if self.tile_of is None else torch.where(noisy.view(-1, 1, 1, 1), x, moved)

    @property
    def is_conditional(self) -> bool:
        """Whether measurements make a difference to the network within."""
        return bool(getattr(self.denoiser, "is_conditional", True))

    @property
    def n_classes(self) -> int:
        return int(getattr(self.denoiser, "n_classes", 0))


def ramp(n: int, like: Tensor) -> Tensor:
    """Weights of a tile along one axis, (n,): next to nothing at its borders, of which a network knows least."""
    position = torch.arange(n, dtype=like.dtype, device=like.device)
    return torch.sin(torch.pi * (position + 0.5) / n).square()


# From the whole measurement to the part that a window's own pixels make.
LocalRule = Callable[[Measurement, Window], Measurement]


def local_rule(measurement: Measurement) -> LocalRule | None:
    """How an operator divides into windows; None where it does not, and the network is told nothing of y."""
    rules: dict[type, LocalRule] = {MaskOperator: _seen_pixels, Blur: _inner_blur, Downsampling: _coarse_pixels}
    rules |= {Bayer: _same_sensor, Grayscale: _same_sensor}
    return next((rule for kind, rule in rules.items() if isinstance(measurement.operator, kind)), None)


def _seen_pixels(measurement: Measurement, window: Window) -> Measurement:
    operator = measurement.operator
    assert isinstance(operator, MaskOperator)
    rows, columns = window.area
    y = measurement.y[..., rows, columns]
    return Measurement(y, MaskOperator(tuple(y.shape[1:]), operator.mask[..., rows, columns]), measurement.sigma_y)


def _inner_blur(measurement: Measurement, window: Window) -> Measurement:
    """The entries of y whose whole neighbourhood lies in the window: a valid blur."""
    operator = measurement.operator
    assert isinstance(operator, Blur)
    h, w = operator.kernel.shape[-2:]
    # Entry 0 of a valid blur sees rows 0 to h - 1; others see as many rows above it as their kernel is high.
    above, left = (0, 0) if operator.boundary == "valid" else (h - 1 - h // 2, w - 1 - w // 2)
    rows = slice(window.top + above, window.bottom + above - h + 1)
    columns = slice(window.left + left, window.right + left - w + 1)
    shape = (operator.image_shape[0], window.bottom - window.top, window.right - window.left)
    return Measurement(measurement.y[..., rows, columns], Blur(shape, operator.kernel, "valid"), measurement.sigma_y)


def _coarse_pixels(measurement: Measurement, window: Window) -> Measurement:
    """Exact but for the filter's reach at the window's borders, which other windows see better."""
    operator = measurement.operator
    assert isinstance(operator, Downsampling)
    f = operator.factor
    y = measurement.y[..., window.top // f : window.bottom // f, window.left // f : window.right // f]
    shape = (operator.image_shape[0], window.bottom - window.top, window.right - window.left)
    return Measurement(y, Downsampling(shape, f, operator.filter).to(y.device), measurement.sigma_y)


def _same_sensor(measurement: Measurement, window: Window) -> Measurement:
    """A sensor's pixels; a window of an odd place, as the last of an odd side, sees the pattern shifted."""
    operator = measurement.operator
    rows, columns = window.area
    shape = (operator.image_shape[0], window.bottom - window.top, window.right - window.left)
    y = measurement.y[..., rows, columns]
    if isinstance(operator, Bayer):
        rows_on, columns_on = window.top % 2, window.left % 2
        pattern = "".join(
            operator.pattern[2 * ((i + rows_on) % 2) + (j + columns_on) % 2] for i in (0, 1) for j in (0, 1)
        )
        return Measurement(y, Bayer(shape, pattern, operator.batch_size).to(y.device), measurement.sigma_y)
    assert isinstance(operator, Grayscale)
    return Measurement(y, Grayscale(shape, operator.weights, operator.batch_size).to(y.device), measurement.sigma_y)
