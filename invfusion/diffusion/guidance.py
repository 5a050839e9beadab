"""Classifier-free guidance as a wrapper around a denoiser. Source: Ho & Salimans 2022; paper section 4.1."""

import torch
from torch import Tensor

from invfusion.diffusion.protocols import ClassConditional
from invfusion.errors import ConfigError
from invfusion.operators.base import Measurement

# Bytes of a batch's operators beyond which these are not copied to double it.
LARGE = 2**28


class GuidedDenoiser:
    """D_null + guidance * (D_class - D_null), (B, C, H, W): both from one denoiser and the same measurement, as one
    batch of twice the size, or one after the other where the operators are large matrices.

    guidance = 1 is the denoiser itself; `calls_per_evaluation` counts how often one evaluation runs the network on each
    image.
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
        self.is_conditional: bool | None = getattr(denoiser, "is_conditional", None)
        self.calls_per_evaluation = 1 if guidance == 1 else 2
        # Of the measurement handed in last: sampling asks with one and the same at every step.
        self._twice: tuple[Measurement | None, Measurement | None] = (None, None)

    def __call__(
        self, x: Tensor, sigma: Tensor, measurement: Measurement | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        if self.guidance == 1:
            return self.denoiser(x, sigma, measurement, class_labels)
        if class_labels is None:
            raise ConfigError(f"guidance {self.guidance} needs class labels; hand them in, or set guidance to 1")
        none = torch.full_like(class_labels, self.n_classes)
        if measurement is not None and measurement.operator.nbytes > LARGE:
            conditional, reference = (self.denoiser(x, sigma, measurement, labels) for labels in (class_labels, none))
            return torch.lerp(reference, conditional, self.guidance)
        labels = torch.cat((class_labels, none))
        levels = sigma.expand(len(x)).repeat(2)
        both = self.denoiser(x.repeat(2, 1, 1, 1), levels, self._doubled(measurement), labels)
        conditional, reference = both.chunk(2)
        return torch.lerp(reference, conditional, self.guidance)

    def _doubled(self, measurement: Measurement | None) -> Measurement | None:
        """The measurements of a batch twice over."""
        if measurement is None:
            return None
        if self._twice[0] is not measurement:
            rows = list(range(len(measurement.y)))
            self._twice = measurement, measurement.select(rows + rows)
        return self._twice[1]
