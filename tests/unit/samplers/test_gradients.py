"""Gradients through a real denoiser, in the places where they are easily lost."""

from pathlib import Path

import pytest
import torch
from gaussian import SHAPE, measured, noise, way

from invfusion.errors import OperatorError
from invfusion.models import DenoiserConfig, LevelConfig, build_denoiser, load_denoiser, save_denoiser
from invfusion.samplers import DPS, Heun
from invfusion.samplers.ddrm import UnrolledDDRM


def test_a_model_loaded_and_used_in_inference_mode_can_be_differentiated(tmp_path: Path) -> None:
    """As the evaluation does: everything in inference mode, samplers without gradients first."""
    levels = (LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1))
    config = DenoiserConfig(
        variant="unconditional", image_size=SHAPE[1], patch_size=2, levels=levels, head_dim=24, mapping_width=16
    )
    fresh = build_denoiser(config)
    with torch.no_grad():
        fresh.net.patch_out.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    save_denoiser(fresh, tmp_path / "model", {})
    sampler = DPS(n_steps=3)
    with torch.inference_mode():
        denoiser, measurement = load_denoiser(tmp_path / "model"), measured(2)[1]
        Heun(n_steps=2).sample(denoiser, None, noise(2), generators=way(2))
        actual = sampler.sample(denoiser, measurement, noise(2), generators=way(2)).x
    expected = sampler.sample(fresh.eval(), measured(2)[1], noise(2), generators=way(2)).x
    torch.testing.assert_close(actual, expected)
    assert all(p.grad is None for p in fresh.parameters())


def test_a_denoiser_without_gradients_is_refused_at_its_first_call() -> None:
    _, measurement = measured(2)
    with pytest.raises(OperatorError, match="autograd cannot differentiate function"):
        DPS(n_steps=3).sample(lambda x, *_: x.detach() / 2, measurement, noise(2), generators=way(2))


def test_images_carry_no_graph_but_for_training_through_a_sampler() -> None:
    denoiser = build_denoiser("digits16", "unconditional", image_size=SHAPE[1])
    measurement = measured(2)[1]
    assert not Heun(n_steps=2).sample(denoiser, None, noise(2), generators=way(2)).x.requires_grad
    assert UnrolledDDRM(n_steps=2).sample(denoiser, measurement, noise(2), generators=way(2)).x.requires_grad
