"""Motion blur followed by down-sampling."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator

from invfusion.degradations.base import DegradationFamily, Law, checked_sides
from invfusion.degradations.motion_kernel import motion_kernels, smooth
from invfusion.errors import ConfigError
from invfusion.operators.base import LinearOperator
from invfusion.operators.convolution import CUTOFF, StridedConvolution
from invfusion.operators.published_blur import PublishedBlur

Intensity = Annotated[float, Field(ge=0, le=1)]


class StridedMotionBlur(DegradationFamily):
    """A motion kernel as large as the image, smoothed by a Gaussian of std = stride, then every stride-th pixel.

    The stride is uniform over `strides` and shared by one draw; kernels are per sample, with camera-shake intensity
    uniform over `intensity`. Raises `ConfigError` where a stride does not divide the image. Source: paper A.3.2.

    law: "official" draws as the published code does: one kernel for a batch, of half the image's sides, and the
    operator `published_blur`, whose blur is padded with zeros and whose measurements are spectra. `cutoff` is the paper
    law's.
    """

    kind: Literal["strided_motion_blur"] = "strided_motion_blur"
    law: Law = "paper"
    strides: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(2, 4, 8), min_length=1)
    intensity: tuple[Intensity, Intensity] = (0.0, 1.0)
    cutoff: float = Field(default=CUTOFF, ge=0, lt=1)

    @property
    def is_nonnegative(self) -> bool:
        return self.law == "paper"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.intensity[0] > self.intensity[1]:
            raise ValueError(f"intensity must be (low, high) with low <= high, got {self.intensity}")
        return self

    def check(self, image_shape: Sequence[int]) -> None:
        h, w = checked_sides(1, image_shape)
        unfit = [s for s in self.strides if h % s or w % s]
        if unfit:
            raise ConfigError(
                f"the strides {unfit} of strided_motion_blur do not divide both sides of {h}x{w} images: "
                f"remove them from 'strides' or use another image size"
            )

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> LinearOperator:
        h, w = checked_sides(batch_size, image_shape)
        self.check(image_shape)
        stride = self.strides[int(torch.randint(len(self.strides), (), generator=generator))]
        low, high = self.intensity
        if self.law == "official":
            one = low + (high - low) * torch.rand(1, generator=generator, dtype=torch.float64)
            kernel = smooth(motion_kernels(one, h // 2, w // 2, generator), std=stride)
            return PublishedBlur(image_shape, kernel.repeat(batch_size, 1, 1), stride)
        intensity = low + (high - low) * torch.rand(batch_size, generator=generator, dtype=torch.float64)
        kernel = smooth(motion_kernels(intensity, h, w, generator), std=stride)
        return StridedConvolution(image_shape, kernel, stride, self.cutoff)
