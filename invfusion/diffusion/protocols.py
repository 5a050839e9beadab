"""What samplers and losses ask of a model."""

from typing import Protocol

from torch import Tensor

from invfusion.operators.base import Measurement


class DenoiserLike(Protocol):
    """Anything that estimates the clean image from a noisy one."""

    def __call__(
        self, x: Tensor, sigma: Tensor, measurement: Measurement | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """E[x0 | x, y] for x (B, C, H, W) at noise levels sigma (B,) or (): float32 (B, C, H, W).

        class_labels: (B,) long; None or the index `n_classes` mean no class.
        """
        ...


class ClassConditional(DenoiserLike, Protocol):
    """A denoiser that says how many classes it knows (0: none)."""

    @property
    def n_classes(self) -> int: ...
