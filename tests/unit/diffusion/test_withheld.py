"""A conditional model that is told nothing serves zero-shot samplers, and answers as without a measurement."""

import pytest
import torch

from invfusion.diffusion.withheld import Withheld
from invfusion.errors import OperatorError
from invfusion.models import DenoiserConfig, LevelConfig, build_denoiser
from invfusion.operators.base import Measurement
from invfusion.operators.masks import MaskOperator
from invfusion.rng import generator
from invfusion.samplers import DDNM

CONFIG = DenoiserConfig(
    image_size=8, patch_size=2, levels=(LevelConfig(width=24, depth=1),), head_dim=8, mapping_width=16,
    mapping_depth=1, mapping_hidden=16, n_classes=3,
)  # fmt: skip


@torch.no_grad()
def test_it_answers_as_without_a_measurement() -> None:
    denoiser = build_denoiser(CONFIG).eval()
    for i, parameter in enumerate(denoiser.parameters()):
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator(i, "weights"))
    x = torch.randn(2, 3, 8, 8, generator=generator(0, "x"))
    mask = (torch.rand(2, 1, 8, 8, generator=generator(0, "mask")) < 0.5).float()
    measurement = Measurement.of(x, MaskOperator((3, 8, 8), mask))
    sigma, labels = torch.tensor(0.5), torch.tensor([0, 2])
    withheld = Withheld(denoiser)
    answer = withheld(x, sigma, measurement, labels)
    assert torch.equal(answer, denoiser(x, sigma, None, labels))
    assert not torch.equal(answer, denoiser(x, sigma, measurement, labels))
    assert withheld.n_classes == 3
    sampler = DDNM(n_steps=2)
    with pytest.raises(OperatorError, match="unconditional"):
        sampler.sample(denoiser, measurement, x)
    restored = sampler.sample(withheld, measurement, x, class_labels=labels).x
    torch.testing.assert_close(restored * mask, x * mask, atol=1e-4, rtol=0)
