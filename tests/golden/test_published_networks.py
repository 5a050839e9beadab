"""Our networks and the published ones, with equal weights, give equal numbers; see published_networks.py."""

import published_networks as published
import pytest
import torch

from invfusion.models import PRESETS, DenoiserConfig
from invfusion.models.config import Variant
from invfusion.operators import Measurement

TOLERANCE = 1e-5
presets = pytest.mark.parametrize("preset", published.REDUCED)
sides = pytest.mark.parametrize("side", published.SIDES)


@presets
@pytest.mark.parametrize("variant", published.VARIANTS)
def test_networks_give_the_published_numbers(preset: str, variant: Variant) -> None:
    denoiser = published.network(preset, variant)
    seen: dict[str, Measurement | None] = {"none": None}
    if denoiser.is_conditional:
        seen |= published.measurements(published.REDUCED[preset].side)
    for name, measurement in seen.items():
        found = published.answer(denoiser, measurement)
        for what, values in found._asdict().items():
            stored = published.NUMBERS[f"{preset}/{variant}/{what}/{name}"]
            assert (values - stored).abs().max() <= TOLERANCE, f"{name}: {what}"


@presets
def test_reduced_networks_have_the_levels_of_their_presets(preset: str) -> None:
    reduced = published.config(preset, "invfusion")
    assert levels(reduced) == levels(PRESETS[preset])
    grids = [reduced.trained_reach(index) for index in range(len(reduced.levels))]
    assert all(level.kernel == "global" or level.kernel < n for level, n in zip(reduced.levels, grids, strict=True))


def levels(config: DenoiserConfig) -> list[tuple[int, int | str, bool]]:
    """Per level, the patch of a token, the neighbourhood, and whether its blocks are InvFusion blocks."""
    return [
        (config.patch_at(index), level.kernel, config.has_invfusion_blocks(index))
        for index, level in enumerate(config.levels)
    ]


@sides
def test_operators_measure_and_project_back_as_published(side: int) -> None:
    image = published.NUMBERS[f"{side}/image"].float() / 127.5 - 1
    for name, measurement in published.measurements(side).items():
        scale = measurement.y.abs().max()
        torch.testing.assert_close(measurement.operator.H(image) / scale, measurement.y / scale, rtol=0, atol=1e-6)
        back = measurement.image.flatten()[:: published.EVERY]
        torch.testing.assert_close(back, published.NUMBERS[f"{side}/back/{name}"], rtol=0, atol=1e-6)


@sides
@pytest.mark.parametrize("stride", published.STRIDES)
def test_the_published_back_projection_is_no_inverse(side: int, stride: int) -> None:
    """A network trained with the true inverse must not be given this operator, nor the other way."""
    measurement = published.measurements(side)[f"blur{stride}"]
    again = measurement.operator.back_project(measurement.operator.H(measurement.image))
    assert (again - measurement.image).norm() > 0.05 * measurement.image.norm()
