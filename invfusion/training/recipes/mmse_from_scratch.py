"""The posterior mean in one step, learnt from fresh weights by Eq. 7 alone: the models of the paper's Table 7."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from invfusion.diffusion.losses import MMSELoss
from invfusion.training.recipes.base import Recipe
from invfusion.training.task import Task


class InvFusionEq7(Recipe):
    """InvFusion's network as an estimator of the mean that was never a diffusion model."""

    name: ClassVar[str] = "invfusion_eq7"
    label: ClassVar[str] = "InvFusion, trained for MMSE alone"
    given: ClassVar[str] = "H†y, y and H"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "invfusion"}
    is_diffusion: ClassVar[bool] = False

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "mmse"}

    def task(self, usual: Task) -> Task:
        return replace(usual, loss=MMSELoss())


class PaletteEq7(InvFusionEq7):
    """The same of the network that must guess the operator."""

    name: ClassVar[str] = "palette_eq7"
    label: ClassVar[str] = "Palette, trained for MMSE alone"
    given: ClassVar[str] = "H†y"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "palette"}
