"""The diffusion model of the images alone, which zero-shot samplers guide."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from invfusion.training.recipes.base import Recipe
from invfusion.training.task import Task


class Unconditional(Recipe):
    """It learns to denoise, and sees no measurement."""

    name: ClassVar[str] = "unconditional"
    label: ClassVar[str] = "Unconditional"
    given: ClassVar[str] = "nothing"
    architecture: ClassVar[Mapping[str, Any]] = {"variant": "unconditional"}
    sees_measurements: ClassVar[bool] = False

    def task(self, usual: Task) -> Task:
        return replace(usual, degradation=None)
