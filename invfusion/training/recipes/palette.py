"""Palette (Saharia et al. 2022), as the paper has it: the network must guess the operator."""

from collections.abc import Mapping
from typing import Any, ClassVar

from invfusion.training.recipes.base import Recipe


class Palette(Recipe):
    """A diffusion model that sees the measurement as an image beside its input."""

    name: ClassVar[str] = "palette"
    label: ClassVar[str] = "Palette"
    given: ClassVar[str] = "H†y"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "palette"}
