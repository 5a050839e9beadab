"""What every preset and variant promises, and every degradation family through the default preset."""

from pathlib import Path

import pytest
import torch

from invfusion.degradations import FAMILIES
from invfusion.models import PRESETS, build_denoiser, load_denoiser, save_denoiser
from invfusion.operators.base import Measurement
from invfusion.rng import generator

VARIANTS = ["invfusion", "palette", "unconditional"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_in_every_variant(preset: str, variant: str) -> None:
    with torch.device("meta"):
        denoiser = build_denoiser(preset, variant)  # type: ignore[arg-type]
    assert denoiser.variant == variant
    assert denoiser.image_shape == PRESETS[preset].image_shape
    assert denoiser.is_conditional == (variant != "unconditional")
    assert denoiser.n_classes == (1000 if preset == "imagenet64" else 0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_passes_through_the_default_preset(kind: str, variant: str) -> None:
    denoiser = build_denoiser("digits16", variant)  # type: ignore[arg-type]
    draw = generator(0, "contract", kind)
    operator = FAMILIES[kind]().sample(batch_size=2, image_shape=(3, 16, 16), generator=draw)
    x = torch.randn((2, 3, 16, 16), generator=draw)
    measurement = Measurement.of(x, operator)
    sigma = torch.tensor([0.1, 10.0])
    denoised, logvar, _ = denoiser(x, sigma, measurement, return_logvar=True)
    assert (denoised.shape, denoised.dtype, logvar.shape) == (x.shape, torch.float32, (2,))
    (denoised.square().mean() + logvar.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_survives_the_disk(variant: str, tmp_path: Path) -> None:
    denoiser = build_denoiser("digits16", variant)  # type: ignore[arg-type]
    save_denoiser(denoiser, f"{tmp_path}/model", {})
    loaded = load_denoiser(f"{tmp_path}/model")
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in denoiser.state_dict().items())
