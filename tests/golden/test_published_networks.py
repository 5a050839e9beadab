"""Our networks and the published ones, with equal weights, give equal numbers; see published_networks.py."""

import published_networks as published
import pytest
import torch

TOLERANCE = 1e-5
PRESETS = {"ffhq64", "imagenet64", "ffhq256"}
VARIANTS = {"invfusion", "palette", "unconditional"}


@pytest.mark.parametrize("case", published.CASES)
def test_networks_give_the_published_numbers(case: str) -> None:
    denoiser = published.network(case)
    seen = published.measurements() if denoiser.is_conditional else {"none": None}
    for name, measurement in seen.items():
        found = published.answer(denoiser, measurement)
        for what, values in found._asdict().items():
            stored = published.NUMBERS[f"{case}/{what}/{name}"]
            assert (values - stored).abs().max() <= TOLERANCE, f"{name}: {what}"


def test_every_preset_and_variant_of_the_paper_is_there() -> None:
    assert set(published.CASES) == {f"{preset}/{variant}" for preset in PRESETS for variant in VARIANTS}


def test_the_published_blur_gives_the_published_back_projection() -> None:
    measurement = published.measurements()["blur4"]
    assert measurement is not None
    found = measurement.image.flatten()[:: published.EVERY]
    torch.testing.assert_close(found, published.NUMBERS["back_projected"], rtol=0, atol=1e-6)
    # It is no inverse: a network that was trained with the true one must not be given this operator, nor the other way.
    operator = measurement.operator
    again = operator.back_project(operator.H(measurement.image))
    assert (again - measurement.image).norm() > 0.05 * measurement.image.norm()
