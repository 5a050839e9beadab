"""Peak signal-to-noise ratio on 8-bit images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.metrics.base import Metric


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each image in dB, (B,) float64, from uint8 (B, C, H, W); infinite where an image has no error.

    Source: methods 8; the paper's number is the arithmetic mean over images.
    """
    if images.dtype != torch.uint8 or truth.dtype != torch.uint8 or images.shape != truth.shape:
        raise ShapeError(
            f"psnr compares uint8 images of one shape, got {images.dtype} {tuple(images.shape)} "
            f"and {truth.dtype} {tuple(truth.shape)}"
        )
    error = (images.double() - truth.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / error)


def psnr_ceiling(image_shape: Sequence[int]) -> float:
    """The largest finite PSNR an 8-bit image can have: one entry off by one grey level."""
    return 10 * math.log10(255**2 * math.prod(image_shape))


PSNR = Metric(
    name="psnr",
    label="PSNR",
    unit="dB",
    better="higher",
    decimals=1,
    main=True,
    needs=frozenset({"truth"}),
    values=lambda restored: psnr(restored.images, restored.need("truth")),
    ceiling=psnr_ceiling,
)
