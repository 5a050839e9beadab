"""The posterior mean with its leading principal components (paper, section 5; Nehme et al. 2023)."""

from dataclasses import replace
from typing import Any, ClassVar

from invfusion.degradations import AnyFamily
from invfusion.degradations.boxes import BoxInpainting
from invfusion.diffusion.losses import NPPCLoss
from invfusion.models import Denoiser, with_components
from invfusion.training.recipes.base import Distillation, Size
from invfusion.training.task import Task


class NPPC(Distillation):
    """Mean and directions together, by default for in-painting of a single area."""

    name: ClassVar[str] = "nppc"
    label: ClassVar[str] = "NPPC"
    given: ClassVar[str] = "as the model that it starts from"

    n_components: Size = 5
    degradation: AnyFamily = BoxInpainting()
    loss: NPPCLoss = NPPCLoss()

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "mmse"}

    def task(self, usual: Task) -> Task:
        return replace(super().task(usual), loss=self.loss, degradation=self.degradation)

    def network_from(self, start: Denoiser, seed: int) -> Denoiser:
        return with_components(super().network_from(start, seed), self.n_components, seed)
