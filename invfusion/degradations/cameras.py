"""What cameras lose: resolution, and colour."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from invfusion.degradations.base import DegradationFamily, checked_sides
from invfusion.errors import ConfigError
from invfusion.names import kind_of
from invfusion.operators.channels import CHANNELS, Bayer, Grayscale
from invfusion.operators.downsampling import Downsampling, Filter


class RandomDownsampling(DegradationFamily):
    """One of `factors`, uniform and shared by one draw. Raises `ConfigError` where one does not divide the image."""

    kind: Literal["downsampling"] = "downsampling"
    factors: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(2, 4), min_length=1)
    filter: Filter = "bicubic"

    @property
    def is_nonnegative(self) -> bool:
        return self.filter in ("area", "nearest")

    def check(self, image_shape: Sequence[int]) -> None:
        h, w = checked_sides(1, image_shape)
        unfit = [s for s in self.factors if h % s or w % s]
        if unfit:
            raise ConfigError(f"the factors {unfit} of downsampling do not divide both sides of {h}x{w} images")

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> Downsampling:
        checked_sides(batch_size, image_shape)
        self.check(image_shape)
        factor = self.factors[int(torch.randint(len(self.factors), (), generator=generator))]
        return Downsampling(image_shape, factor, self.filter, batch_size)


class _Colour(DegradationFamily):
    """Nothing is random here; images must have three channels."""

    def check(self, image_shape: Sequence[int]) -> None:
        checked_sides(1, image_shape)
        if image_shape[0] != len(CHANNELS):
            kind = kind_of(self)
            raise ConfigError(f"the family '{kind}' needs images of three channels, got {image_shape[0]}")


class RandomMosaic(_Colour):
    """A sensor's mosaic of colours; see `Bayer`."""

    kind: Literal["mosaic"] = "mosaic"
    pattern: Annotated[str, Field(pattern="^[RGB]{4}$")] = "RGGB"

    def sample(
        self,
        batch_size: int,
        image_shape: Sequence[int],
        generator: torch.Generator,  # noqa: ARG002
    ) -> Bayer:
        checked_sides(batch_size, image_shape)
        self.check(image_shape)
        return Bayer(image_shape, self.pattern, batch_size)


class Gray(_Colour):
    """The luma of a coloured image; see `Grayscale`."""

    kind: Literal["grayscale"] = "grayscale"

    def sample(
        self,
        batch_size: int,
        image_shape: Sequence[int],
        generator: torch.Generator,  # noqa: ARG002
    ) -> Grayscale:
        checked_sides(batch_size, image_shape)
        self.check(image_shape)
        return Grayscale(image_shape, batch_size=batch_size)
