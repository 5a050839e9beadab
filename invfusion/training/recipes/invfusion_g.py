"""InvFusion-G: InvFusion inside the posterior of a Gaussian prior."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from invfusion.diffusion.losses import DiffusionLoss
from invfusion.training.recipes.base import Recipe
from invfusion.training.task import Task


class InvFusionG(Recipe):
    """A diffusion model that learns what the Gaussian posterior of the training images does not know.

    share_at_sigma_max: of the training images, at the noise level where the network gives the posterior mean.
    """

    name: ClassVar[str] = "invfusion_g"
    label: ClassVar[str] = "InvFusion-G"
    given: ClassVar[str] = "y, H and sigma_y, and the Gaussian posterior"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "invfusion", "preconditioning": "gaussian"}

    share_at_sigma_max: float = Field(default=0.2, ge=0, lt=1)

    def task(self, usual: Task) -> Task:
        if not isinstance(usual.loss, DiffusionLoss):
            return usual
        return replace(usual, loss=usual.loss.model_copy(update={"share_at_sigma_max": self.share_at_sigma_max}))
