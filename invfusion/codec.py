"""The only place that knows the pixel range: uint8 [0, 255] on disk, float32 [-1, 1] everywhere else."""

import torch
from torch import Tensor


def decode(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]; any shape."""
    return pixels.to(torch.float32) / 127.5 - 1


def encode(x: Tensor) -> Tensor:
    """float [-1, 1] to uint8 [0, 255], clipped; any shape; `encode(decode(u)) == u` exactly (methods of EDM2)."""
    return (x.float() * 127.5 + 128).clip(0, 255).to(torch.uint8)


def to_pixel_scale(x: Tensor) -> Tensor:
    """float [-1, 1] to the scale [0, 255], neither rounded nor clipped; any shape. `decode` gives it back."""
    return (x + 1) * 127.5
