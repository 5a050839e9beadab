"""The posterior mean in one step (paper Eq. 7)."""

from dataclasses import replace
from typing import Any, ClassVar

from invfusion.diffusion.losses import MMSELoss
from invfusion.training.recipes.base import Distillation
from invfusion.training.task import Task


class MMSE(Distillation):
    """A diffusion model made into an estimator of the mean, on its own degradations."""

    name: ClassVar[str] = "mmse"
    label: ClassVar[str] = "distilled MMSE"
    given: ClassVar[str] = "as the model that it starts from"

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "mmse"}

    def task(self, usual: Task) -> Task:
        return replace(super().task(usual), loss=MMSELoss())
