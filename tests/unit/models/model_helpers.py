"""What the tests of models share: a tiny architecture and seeded inputs."""

import torch
from torch import Tensor

from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, build_denoiser
from invfusion.operators import LinearOperator
from invfusion.operators.base import Measurement
from invfusion.operators.masks import MaskOperator
from invfusion.rng import generator

TINY = DenoiserConfig(
    image_size=8,
    patch_size=1,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_depth=1,
    mapping_hidden=16,
    dropout=0.0,
)


def normal(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name))


def shaken(preset: str | DenoiserConfig = TINY, variant: str | None = None, **overrides: object) -> Denoiser:
    """A denoiser whose zero weights were moved off zero, as training would."""
    denoiser = build_denoiser(preset, variant, **overrides)  # type: ignore[arg-type]
    draw = generator(0, "shake")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return denoiser.eval()


def mask_operator(batch_size: int, image_shape: tuple[int, int, int] = (3, 8, 8)) -> LinearOperator:
    mask = torch.rand((batch_size, 1, *image_shape[1:]), generator=generator(0, "mask")) < 0.5
    return MaskOperator(image_shape, mask.float())


def measure(x: Tensor) -> Measurement:
    return Measurement.of(x, mask_operator(len(x), tuple(x.shape[1:])))  # type: ignore[arg-type]
