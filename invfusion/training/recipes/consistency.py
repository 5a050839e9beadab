"""Few-step sampling: a trained diffusion model made consistent along its trajectories (Geng et al. 2024)."""

from dataclasses import replace
from typing import Any, ClassVar

from invfusion.diffusion.losses import ConsistencyLoss
from invfusion.training.recipes.base import Distillation
from invfusion.training.task import Task


class Consistency(Distillation):
    """Samples in 1, 2 or 4 calls, conditional on what the model that it starts from is given."""

    name: ClassVar[str] = "consistency"
    label: ClassVar[str] = "Consistency"
    given: ClassVar[str] = "as the model that it starts from"
    target_calls: ClassVar[int] = 1

    loss: ConsistencyLoss = ConsistencyLoss()

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "consistency", "n_steps": 2}

    def task(self, usual: Task) -> Task:
        return replace(super().task(usual), loss=self.loss)
