"""A trained diffusion model trained on: on other images, or other degradations."""

from typing import ClassVar

from invfusion.training.recipes.base import Distillation


class FineTuned(Distillation):
    """The usual diffusion loss from given weights, such as imported ones, on the data and degradations at hand."""

    name: ClassVar[str] = "finetuned"
    label: ClassVar[str] = "InvFusion, fine-tuned"
    given: ClassVar[str] = "as the model that it starts from"
    is_diffusion: ClassVar[bool] = True

    @property
    def reads_out(self) -> dict[str, object]:
        return {"kind": "heun", "n_steps": 8}
