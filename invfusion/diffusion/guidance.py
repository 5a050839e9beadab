"""Classifier-free guidance as a wrapper around a denoiser. Source: Ho & Salimans 2022; paper section 4.1."""

import torch
from torch import Tensor

from invfusion.diffusion.protocols import ClassConditional
from invfusion.errors import ConfigError
from invfusion.operators.base import Measurement


class GuidedDenoiser:
    """D_null + guidance * (D_class - D_null): both from one denoiser and the same measurement.

    guidance = 1 is the denoiser itself, in one call; `calls_per_evaluation` counts the network calls of one evaluation.
    Raises `ConfigError` where guidance is not 1 and the model has no classes or a call has no class labels.
    """

    def __init__(self, denoiser: ClassConditional, guidance: float) -> None:
        if guidance != 1 and denoiser.n_classes == 0:
            raise ConfigError(
                f"guidance {guidance} needs a model with classes, and this one has none; set guidance to 1"
            )
        self.denoiser = denoiser
        self.guidance = guidance
        self.n_classes = denoiser.n_classes
        self.calls_per_evaluation = 1 if guidance == 1 else 2

    def __call__(
        self, x: Tensor, sigma: Tensor, measurement: Measurement | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        if self.guidance == 1:
            return self.denoiser(x, sigma, measurement, class_labels)
        if class_labels is None:
            raise ConfigError(f"guidance {self.guidance} needs class labels; hand them in, or set guidance to 1")
        conditional = self.denoiser(x, sigma, measurement, class_labels)
        null = torch.full_like(class_labels, self.n_classes)
        reference = self.denoiser(x, sigma, measurement, null)
        return torch.lerp(reference, conditional, self.guidance)
