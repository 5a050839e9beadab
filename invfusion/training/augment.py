"""The geometric augmentation of EDM: flips, scalings, rotation and translation as one affine map per image.

The nine labels tell the network what was done, so that samples drawn with zero labels are not augmented. Source: EDM,
appendix F.2 (after StyleGAN2-ADA); colour is not touched.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

N_LABELS = 9
SCALE = 0.2
TRANSLATION = 0.125
# Low-pass filter of the sym6 wavelet: what the images are up- and down-sampled with around the resampling.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip


def augment(x: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) -> (augmented images, labels (B, 9)); with probability 0 the images themselves and None.

    With augmentation on, horizontal flips have probability 1/2 whatever `probability` is.
    """
    if probability == 0:
        return x, None
    flips, matrix, labels = _draw(len(x), probability, generator)
    flipped_x = torch.where(flips[:, 0].bool().view(-1, 1, 1, 1).to(x.device), x.flip(3), x)
    flipped = torch.where(flips[:, 1].bool().view(-1, 1, 1, 1).to(x.device), flipped_x.flip(2), flipped_x)
    moved = (matrix - torch.eye(3)).abs().amax((1, 2)) > 0
    if bool(moved.any()):
        rows = moved.nonzero()[:, 0].to(x.device)
        flipped = flipped.index_copy(0, rows, _warp(flipped[rows], matrix[moved].to(x.device)))
    return flipped, labels.to(x.device)


def _draw(n: int, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Flips (n, 2), affine maps (n, 3, 3) of centred coordinates in units of half an image, labels (n, 9)."""

    def normal() -> Tensor:
        return torch.randn(n, generator=generator)

    def uniform() -> Tensor:
        return torch.rand(n, generator=generator)

    def gate(p: float) -> Tensor:
        return (uniform() < p).float()

    x_flip, y_flip = gate(0.5), gate(0.5) * gate(probability)
    scale = normal() * gate(probability)
    angle = (2 * uniform() - 1) * math.pi * gate(probability)
    stretch = normal() * gate(probability)
    axis = (2 * uniform() - 1) * math.pi * gate(0.5)
    translated = gate(probability)
    shift_x, shift_y = normal() * translated, normal() * translated
    matrix = (
        _translation(shift_x * TRANSLATION * 2, shift_y * TRANSLATION * 2)
        @ _rotation(axis) @ _scaling(2 ** (SCALE * stretch), 2 ** (-SCALE * stretch)) @ _rotation(-axis)
        @ _rotation(angle) @ _scaling(2 ** (SCALE * scale), 2 ** (SCALE * scale))
    )  # fmt: skip
    labels = [
        x_flip, y_flip, scale, angle.cos() - 1, angle.sin(), stretch * axis.cos(), stretch * axis.sin(), shift_x, shift_y
    ]  # fmt: skip
    return torch.stack([x_flip, y_flip], 1), matrix, torch.stack(labels, 1)


def _scaling(sx: Tensor, sy: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([sx, sy, torch.ones_like(sx)], 1))


def _rotation(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], 1).view(-1, 3, 3)


def _translation(tx: Tensor, ty: Tensor) -> Tensor:
    matrix = torch.eye(3).repeat(len(tx), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = tx, ty
    return matrix


def _warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Resample at twice the resolution between sym6 filters, with mirrored surroundings."""
    _, _, h, w = x.shape
    margin = len(SYM6)
    filter_1d = x.new_tensor(SYM6)
    pad_h, pad_w = min(h - 1, h // 2 + margin), min(w - 1, w // 2 + margin)
    padded = F.pad(x, (pad_w, pad_w, pad_h, pad_h), mode="reflect")
    fine = _upsample(padded, filter_1d)
    out_h, out_w = h + 2 * margin, w + 2 * margin
    theta = torch.linalg.inv(matrix)[:, :2].clone()
    # grid_sample counts in halves of its own input and output; the map counts in halves of the image.
    to_input = x.new_tensor([w / padded.shape[3], h / padded.shape[2]])
    from_output = x.new_tensor([out_w / w, out_h / h, 1.0])
    grid = F.affine_grid(
        theta * to_input[None, :, None] * from_output, [len(x), x.shape[1], 2 * out_h, 2 * out_w], align_corners=False
    )
    resampled = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _downsample(resampled, filter_1d)[:, :, margin : margin + h, margin : margin + w]


def _upsample(x: Tensor, taps: Tensor) -> Tensor:
    b, c, h, w = x.shape
    zeros = x.new_zeros(b, c, h, 2, w, 2)
    zeros[:, :, :, 0, :, 0] = x
    return _filter(zeros.view(b, c, 2 * h, 2 * w), taps * 2 / taps.sum(), left=(len(taps) - 1) // 2)


def _downsample(x: Tensor, taps: Tensor) -> Tensor:
    return _filter(x, (taps / taps.sum()).flip(0), left=len(taps) // 2 - 1)[:, :, ::2, ::2]


def _filter(x: Tensor, taps: Tensor, left: int) -> Tensor:
    """Separable convolution of the same size."""
    c, n = x.shape[1], len(taps)
    right = n - 1 - left
    padded = F.pad(x, (left, right, left, right))
    rows = F.conv2d(padded, taps.view(1, 1, 1, n).expand(c, 1, 1, n), groups=c)
    return F.conv2d(rows, taps.view(1, 1, n, 1).expand(c, 1, n, 1), groups=c)
