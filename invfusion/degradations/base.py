"""What every family of degradations promises."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from invfusion.errors import ConfigError
from invfusion.names import kind_of
from invfusion.operators.base import LinearOperator
from invfusion.schema import Config

# The paper's text, or the published code, which the published numbers come from.
Law = Literal["paper", "official"]
# Images that the published evaluation measures together.
OFFICIAL_BATCH = 32


class DegradationFamily(Config, ABC):
    """A distribution over linear operators. All randomness comes from the CPU generator that is handed in.

    law_version: counts up whenever other operators come of the same settings and generator, so that measurements that
    were kept under an earlier one are not taken for new ones.
    """

    law_version: ClassVar[int] = 1

    @property
    def is_nonnegative(self) -> bool:
        """Whether every operator maps images without negative values to measurements without."""
        return True

    @property
    def is_official(self) -> bool:
        """Whether operators follow the law of the published code, so that the published numbers are about the same."""
        return getattr(self, "law", "official") == "official"

    def law_versions(self) -> dict[str, int]:
        """The version of the law of each family that is drawn from, by kind."""
        return {kind_of(self): self.law_version}

    @abstractmethod
    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> LinearOperator:
        """Draw `batch_size` float32 operators on the CPU for images of shape (C, H, W)."""

    def check(self, image_shape: Sequence[int]) -> None:
        """Raise `ConfigError` where the family has no operators for images of shape (C, H, W)."""
        checked_sides(1, image_shape)


def checked_sides(batch_size: int, image_shape: Sequence[int]) -> tuple[int, int]:
    """The sides (h, w) of the images; raises `ConfigError` unless the request makes sense."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ConfigError(f"image_shape must be three positive numbers (C, H, W), got {tuple(image_shape)}")
    return int(image_shape[1]), int(image_shape[2])
