"""InvFusion's architecture under flow matching (Lipman et al. 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from invfusion.diffusion.losses import FlowMatchingLoss
from invfusion.training.recipes.base import Recipe
from invfusion.training.task import Task


class Flow(Recipe):
    """A network with feature degradation layers that learns the velocity from noise to images."""

    name: ClassVar[str] = "flow"
    label: ClassVar[str] = "InvFusion, flow matching"
    given: ClassVar[str] = "H†y, y and H"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "invfusion", "preconditioning": "edm"}

    loss: FlowMatchingLoss = FlowMatchingLoss()

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "flow", "n_steps": 8}

    def task(self, usual: Task) -> Task:
        return replace(usual, loss=self.loss)
