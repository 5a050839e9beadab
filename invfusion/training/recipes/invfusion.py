"""InvFusion, the paper's model: the network applies the operator to its features."""

from collections.abc import Mapping
from typing import Any, ClassVar

from invfusion.training.recipes.base import Recipe


class InvFusion(Recipe):
    """A diffusion model with feature degradation layers."""

    name: ClassVar[str] = "invfusion"
    label: ClassVar[str] = "InvFusion"
    given: ClassVar[str] = "H†y, y and H"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "invfusion"}
