"""A diffusion model trained on through all steps of DDRM (paper, appendix D.5)."""

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from invfusion.samplers.ddrm import UnrolledDDRM as Sampler
from invfusion.training.recipes.base import Distillation, Recipe, Size
from invfusion.training.task import Task
from invfusion.training.unrolled import UnrolledDDRMLoss


class UnrolledDDRM(Distillation):
    """n_steps, eta: of the unrolled sampler."""

    name: ClassVar[str] = "unrolled_ddrm"
    label: ClassVar[str] = "Unrolled DDRM"
    given: ClassVar[str] = "nothing; its sampler uses y and H"
    starts_from: ClassVar[str | None] = "unconditional"

    n_steps: Size = 10
    eta: float = Field(default=0.85, ge=0, le=1)

    @classmethod
    def can_start_from(cls, other: type[Recipe]) -> bool:
        """Any diffusion model will do."""
        return other.is_diffusion

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "unrolled_ddrm", "n_steps": self.n_steps, "eta": self.eta}

    def task(self, usual: Task) -> Task:
        loss = UnrolledDDRMLoss(sampler=Sampler(n_steps=self.n_steps, eta=self.eta))
        return replace(super().task(usual), loss=loss)
