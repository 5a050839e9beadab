"""The geometric augmentation of EDM: flips, scalings, rotation and translation as one affine map per image.

The nine labels tell the network what was done, so that samples drawn with zero labels are not augmented. Source: EDM,
appendix F.2 (after StyleGAN2-ADA); colour is not touched.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE = 0.2
TRANSLATION = 0.125
# Low-pass filter of the sym6 wavelet: what the images are up- and down-sampled with around the resampling.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
# Pixels around the image that the filters reach into.
MARGIN = len(SYM6) // 4 + 1
# The filter is not quite symmetric: a picture of twice the resolution is shifted by this part of an original pixel.
DELAY = (sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6) - (len(SYM6) - 1) / 2) / 2


def augment(x: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) -> (augmented images, labels (B, 9)); with probability 0 the images themselves and None.

    With augmentation on, horizontal flips have probability 1/2 whatever `probability` is.
    """
    if probability == 0:
        return x, None
    flips, maps, labels = _draw(len(x), (x.shape[2], x.shape[3]), probability, generator)
    x = _where(flips[:, 0], x.flip(3), x)
    x = _where(flips[:, 1], x.flip(2), x)
    moved = (maps != torch.eye(3)).any(2).any(1)
    if bool(moved.any()):
        rows = moved.nonzero()[:, 0].to(x.device)
        x = x.index_copy(0, rows, warp(x[rows], maps[moved].to(x.device)))
    return x, labels.to(x.device)


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(rows.to(a.device).bool().view(-1, 1, 1, 1), a, b)


def _draw(
    n: int, size: tuple[int, int], probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Flips (n, 2), affine maps (n, 3, 3) in pixels around the centre, labels (n, 9). size: (height, width)."""

    def normal() -> Tensor:
        return torch.randn(n, generator=generator)

    def angle() -> Tensor:
        return (2 * torch.rand(n, generator=generator) - 1) * math.pi

    def gate(p: float) -> Tensor:
        return (torch.rand(n, generator=generator) < p).float()

    x_flip, y_flip = gate(0.5), gate(0.5) * gate(probability)
    scale = normal() * gate(probability)
    turn = angle() * gate(probability)
    stretch, axis = normal() * gate(probability), angle() * gate(0.5)
    translated = gate(probability)
    shift_x, shift_y = normal() * translated, normal() * translated
    maps = (
        _translation(TRANSLATION * size[1] * shift_x, TRANSLATION * size[0] * shift_y)
        @ _rotation(axis) @ _scaling(2 ** (SCALE * stretch), 2 ** (-SCALE * stretch)) @ _rotation(-axis)
        @ _rotation(turn) @ _scaling(2 ** (SCALE * scale), 2 ** (SCALE * scale))
    )  # fmt: skip
    # Turning an axis that is not stretched multiplies to the identity only up to rounding.
    maps[(stretch == 0) & (turn == 0) & (scale == 0) & (translated == 0)] = torch.eye(3)
    labels = [
        x_flip, y_flip, scale, turn.cos() - 1, turn.sin(), stretch * axis.cos(), stretch * axis.sin(), shift_x, shift_y
    ]  # fmt: skip
    return torch.stack([x_flip, y_flip], 1), maps, torch.stack(labels, 1)


def _scaling(sx: Tensor, sy: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([sx, sy, torch.ones_like(sx)], 1))


def _rotation(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], 1).view(-1, 3, 3)


def _translation(tx: Tensor, ty: Tensor) -> Tensor:
    matrix = torch.eye(3).repeat(len(tx), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = tx, ty
    return matrix


def warp(x: Tensor, maps: Tensor) -> Tensor:
    """Move images (B, C, H, W) by maps (B, 3, 3) of (column, row) in pixels around the centre.

    Resampled at twice the resolution between sym6 filters; the surroundings are the image's mirror images.
    """
    b, c, h, w = x.shape
    outer_h, outer_w = h + 2 * MARGIN, w + 2 * MARGIN
    fine = _upsample(F.pad(x, (MARGIN,) * 4, mode="reflect"))
    fine = fine[:, :, 2 * MARGIN : 2 * (MARGIN + h), 2 * MARGIN : 2 * (MARGIN + w)]
    # A grid counts in halves of the picture: of the one read from, and of the one written.
    to_grid = x.new_tensor([2 / w, 2 / h])[:, None]
    from_grid = x.new_tensor([outer_w / 2, outer_h / 2, 1])
    delay = _translation(torch.tensor([DELAY]), torch.tensor([DELAY])).to(x.device)
    theta = to_grid * (delay @ torch.linalg.inv(delay @ maps))[:, :2] * from_grid
    grid = F.affine_grid(theta, [b, c, 2 * outer_h, 2 * outer_w], align_corners=False)
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _downsample(moved)[:, :, MARGIN : MARGIN + h, MARGIN : MARGIN + w]


def _upsample(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    zeros = x.new_zeros(b, c, h, 2, w, 2)
    zeros[:, :, :, 0, :, 0] = x
    taps = x.new_tensor(SYM6[::-1])
    return _filter(zeros.view(b, c, 2 * h, 2 * w), 2 * taps / taps.sum(), left=len(SYM6) // 2)


def _downsample(x: Tensor) -> Tensor:
    taps = x.new_tensor(SYM6)
    return _filter(x, taps / taps.sum(), left=len(SYM6) // 2 - 1)[:, :, ::2, ::2]


def _filter(x: Tensor, taps: Tensor, left: int) -> Tensor:
    """Separable filter with as much output as input; zeros outside."""
    c, n = x.shape[1], len(taps)
    right = n - 1 - left
    padded = F.pad(x, (left, right, left, right))
    rows = F.conv2d(padded, taps.view(1, 1, 1, n).expand(c, 1, 1, n), groups=c)
    return F.conv2d(rows, taps.view(1, 1, n, 1).expand(c, 1, n, 1), groups=c)
