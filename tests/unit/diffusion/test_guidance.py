"""Classifier-free guidance around a denoiser that counts its calls."""

import pytest
import torch
from torch import Tensor

from invfusion.diffusion.guidance import GuidedDenoiser
from invfusion.errors import ConfigError
from invfusion.operators.base import Measurement
from invfusion.operators.null import NullOperator


class LabelDenoiser:
    """Answers with its class label; remembers the measurements it saw."""

    def __init__(self, n_classes: int = 10) -> None:
        self.n_classes = n_classes
        self.seen: list[Measurement | None] = []

    def __call__(
        self, x: Tensor, sigma: Tensor, measurement: Measurement | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        self.seen.append(measurement)
        assert class_labels is not None
        return torch.zeros_like(x) + class_labels.view(-1, 1, 1, 1)


X = torch.zeros(2, 3, 4, 4)
LABELS = torch.tensor([3, 7])
MEASUREMENT = Measurement.of(X, NullOperator((3, 4, 4), torch.zeros(2, 0)))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 2.0])
def test_formula_null_class_and_same_measurement(guidance: float) -> None:
    inner = LabelDenoiser()
    guided = GuidedDenoiser(inner, guidance)
    out = guided(X, torch.tensor(1.0), MEASUREMENT, LABELS)[:, 0, 0, 0]
    torch.testing.assert_close(out, 10 + guidance * (LABELS.float() - 10))
    assert len(inner.seen) == guided.calls_per_evaluation == 2
    assert all(m is MEASUREMENT for m in inner.seen)


def test_guidance_one_is_one_call() -> None:
    inner = LabelDenoiser()
    guided = GuidedDenoiser(inner, 1.0)
    torch.testing.assert_close(guided(X, torch.tensor(1.0), None, LABELS)[:, 0, 0, 0], LABELS.float())
    assert len(inner.seen) == guided.calls_per_evaluation == 1


def test_guidance_needs_classes() -> None:
    with pytest.raises(ConfigError, match="model with classes"):
        GuidedDenoiser(LabelDenoiser(n_classes=0), 2.0)
    with pytest.raises(ConfigError, match="needs class labels"):
        GuidedDenoiser(LabelDenoiser(), 2.0)(X, torch.tensor(1.0))
