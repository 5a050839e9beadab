"""A conditional model in the place of an unconditional one, as zero-shot methods need it."""

from torch import Tensor

from invfusion.diffusion.protocols import ClassConditional
from invfusion.operators.base import Measurement


class Withheld:
    """A denoiser that is told nothing of the measurement: D(x, sigma) for x (B, C, H, W), float32.

    A model that learnt to restore learnt to do without, too, from the part of its training in which nothing was
    measured (the family "null"; paper, appendix A.3).
    """

    is_conditional = False

    def __init__(self, denoiser: ClassConditional) -> None:
        self.denoiser = denoiser
        self.n_classes = denoiser.n_classes

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,  # noqa: ARG002
        class_labels: Tensor | None = None,
    ) -> Tensor:
        return self.denoiser(x, sigma, None, class_labels)
