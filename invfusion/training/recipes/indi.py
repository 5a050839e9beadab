"""InDI (Delbracio & Milanfar 2023): inversion by direct iteration."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from invfusion.diffusion.losses import InDILoss
from invfusion.training.recipes.base import Recipe
from invfusion.training.task import Task


class InDI(Recipe):
    """A network that goes back from H†y to the image step by step; it sees where it is, but neither y nor H.

    epsilon: noise at the start, the only randomness that a restoration has.
    """

    name: ClassVar[str] = "indi"
    label: ClassVar[str] = "InDI"
    given: ClassVar[str] = "H†y, as the start"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "unconditional", "preconditioning": "edm"}
    is_diffusion: ClassVar[bool] = False

    epsilon: float = Field(default=0.01, ge=0)

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "indi", "n_steps": 8, "epsilon": self.epsilon}

    def task(self, usual: Task) -> Task:
        return replace(usual, loss=InDILoss(epsilon=self.epsilon))
