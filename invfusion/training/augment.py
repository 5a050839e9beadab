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
# Low-pass filter of the sym6 wavelet: what the images are up- and down-sampled with around the resampling. It is not
# quite symmetric, so the picture of twice the resolution is shifted by a fraction of a pixel; as in EDM, maps act on it
# as it is.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
# Pixels around the image that the filter reaches into.
MARGIN = len(SYM6) // 4


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
    """Flips (n, 2), affine maps (n, 3, 3) in pixels around the centre, labels (n, 9). size: (height, width).

    Rows count downwards, so a rotation by -turn moves the picture counter-clockwise on the screen: EDM's sense.
    """

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
        @ _rotation(-axis) @ _scaling(2 ** (SCALE * stretch), 2 ** (-SCALE * stretch)) @ _rotation(axis)
        @ _rotation(-turn) @ _scaling(2 ** (SCALE * scale), 2 ** (SCALE * scale))
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

    Resampled at twice the resolution between sym6 filters. The surroundings are the image's mirror images without its
    edge pixels, as far as these reach, and grey beyond. Source: EDM, appendix F.2 and its published augmentation.
    """
    b, c, h, w = x.shape
    backward = torch.linalg.inv(maps)
    left, top, right, bottom = _margins(backward, h, w)
    fine = _upsample(F.pad(x, (left, right, top, bottom), mode="reflect"))
    outer = (2 * (w + 2 * MARGIN), 2 * (h + 2 * MARGIN))
    # From a pixel of the outer fine picture to one of the padded fine one: both have half a pixel before the first.
    backward = _translation_by((left - right) / 2, (top - bottom) / 2, x) @ backward
    backward = _scaling_by(2, 2, x) @ backward @ _scaling_by(0.5, 0.5, x)
    backward = _translation_by(-0.5, -0.5, x) @ backward @ _translation_by(0.5, 0.5, x)
    # A grid counts in halves of the picture: of the one read from, and of the one written.
    backward = _scaling_by(2 / fine.shape[3], 2 / fine.shape[2], x) @ backward
    theta = (backward @ _scaling_by(outer[0] / 2, outer[1] / 2, x))[:, :2]
    grid = F.affine_grid(theta, [b, c, outer[1], outer[0]], align_corners=False)
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _downsample(moved)


def _margins(backward: Tensor, h: int, w: int) -> list[int]:
    """(left, top, right, bottom): how far outside the image any corner comes from, at most what mirroring gives."""
    column, row = (w - 1) / 2, (h - 1) / 2
    corners = backward.new_tensor([[-column, -row, 1], [column, -row, 1], [column, row, 1], [-column, row, 1]])
    places = (backward @ corners.T)[:, :2].transpose(0, 1).flatten(1)
    reach = torch.cat([-places, places]).amax(1) + backward.new_tensor([2 * MARGIN - column, 2 * MARGIN - row] * 2)
    most = reach.new_tensor([w - 1, h - 1] * 2)
    return [int(n) for n in reach.clamp(min=0).minimum(most).ceil().tolist()]


def _translation_by(tx: float, ty: float, like: Tensor) -> Tensor:
    return like.new_tensor([[1, 0, tx], [0, 1, ty], [0, 0, 1]])


def _scaling_by(sx: float, sy: float, like: Tensor) -> Tensor:
    return like.new_tensor([[sx, 0, 0], [0, sy, 0], [0, 0, 1]])


def _upsample(x: Tensor) -> Tensor:
    """Zeros between the pixels, then the filter backwards: (B, C, H, W) -> (B, C, 2H, 2W)."""
    b, c, h, w = x.shape
    zeros = x.new_zeros(b, c, h, 2, w, 2)
    zeros[:, :, :, 0, :, 0] = x
    taps = x.new_tensor(SYM6[::-1])
    return _filter(zeros.view(b, c, 2 * h, 2 * w)[:, :, :-1, :-1], taps, pad=(len(SYM6) + 1) // 2)


def _downsample(x: Tensor) -> Tensor:
    """The filter forwards, every second pixel, without the margins."""
    fine = _filter(x, x.new_tensor(SYM6), pad=(len(SYM6) - 1) // 2)
    return fine[:, :, ::2, ::2][:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]


def _filter(x: Tensor, taps: Tensor, pad: int) -> Tensor:
    """Separable filter; `pad` zeros outside."""
    c, n = x.shape[1], len(taps)
    rows = F.conv2d(x, taps.view(1, 1, 1, n).expand(c, 1, 1, n), groups=c, padding=(0, pad))
    return F.conv2d(rows, taps.view(1, 1, n, 1).expand(c, 1, n, 1), groups=c, padding=(pad, 0))
