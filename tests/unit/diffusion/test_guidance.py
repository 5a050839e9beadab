"""Classifier-free guidance around a denoiser that counts its calls."""

import pytest
import torch
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.diffusion.guidance import GuidedDenoiser
from invfusion.errors import ConfigError
from invfusion.models import DenoiserConfig, LevelConfig, build_denoiser
from invfusion.operators.base import Measurement
from invfusion.operators.masks import MaskOperator
from invfusion.operators.null import NullOperator
from invfusion.rng import generator


class LabelDenoiser:
    """Answers with its class label; remembers the measurements it saw, one entry for each call."""

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
    assert guided.calls_per_evaluation == 2


def test_both_passes_are_one_batch_with_one_doubled_measurement() -> None:
    inner = LabelDenoiser()
    x = torch.arange(8.0).view(2, 1, 2, 2)
    measurement = Measurement.of(x, MaskOperator((1, 2, 2), torch.eye(2)[:, None, None].expand(2, 1, 2, 2)))
    guided = GuidedDenoiser(inner, 2.0)
    for _ in range(3):
        guided(x, torch.tensor(1.0), measurement, LABELS)
    assert len(inner.seen) == 3
    seen = inner.seen[0]
    assert seen is not None
    assert all(other is seen for other in inner.seen)
    assert torch.equal(seen.y, measurement.y.repeat(2, 1, 1, 1))
    assert seen.operator.batch_size == 4
    assert torch.equal(seen.operator.H(x.repeat(2, 1, 1, 1)), seen.y)


def test_large_operators_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invfusion.diffusion.guidance.LARGE", 10)
    inner = LabelDenoiser()
    measurement = Measurement.of(X, MaskOperator((3, 4, 4), torch.ones(2, 1, 4, 4)))
    out = GuidedDenoiser(inner, 2.0)(X, torch.tensor(1.0), measurement, LABELS)[:, 0, 0, 0]
    torch.testing.assert_close(out, 10 + 2 * (LABELS.float() - 10))
    assert len(inner.seen) == 2
    assert all(seen is measurement for seen in inner.seen)


@pytest.mark.parametrize("kind", ["strided_motion_blur", "matrix", None])
def test_one_batch_gives_what_two_calls_give(kind: str | None) -> None:
    denoiser = build_denoiser(
        DenoiserConfig(
            image_size=8, patch_size=2, levels=(LevelConfig(width=24, depth=1),), head_dim=8, mapping_width=16,
            mapping_depth=1, mapping_hidden=16, n_classes=10,
        )
    ).eval()  # fmt: skip
    draws = generator(0, "weights")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)
        x, sigma = torch.randn(2, 3, 8, 8, generator=draws), torch.tensor([0.5, 3.0])
        measurement = None
        if kind is not None:
            measurement = Measurement.of(x, FAMILIES[kind]().sample(2, (3, 8, 8), draws))
        with_class = denoiser(x, sigma, measurement, LABELS)
        without = denoiser(x, sigma, measurement, torch.full_like(LABELS, 10))
        guided = GuidedDenoiser(denoiser, 2.0)(x, sigma, measurement, LABELS)
    torch.testing.assert_close(guided, without + 2 * (with_class - without), rtol=1e-4, atol=1e-5)


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
