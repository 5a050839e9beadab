import pytest
import torch
from gaussian import GaussianDenoiser, measured, noise, way

from invfusion.errors import OperatorError
from invfusion.samplers import DDRM


def seen(values: torch.Tensor, measurement) -> torch.Tensor:
    return values[measurement.operator.H(torch.ones_like(values)) > 0]


def hidden(values: torch.Tensor, measurement) -> torch.Tensor:
    return values[measurement.operator.H(torch.ones_like(values)) == 0]


def test_noiseless_pixels_are_kept_and_hidden_ones_drawn() -> None:
    x, measurement = measured(128)
    output = DDRM().sample(GaussianDenoiser(), measurement, noise(128), generators=way(128))
    assert float(seen(output.x - x, measurement).abs().max()) < 1e-5
    assert float(hidden(output.x, measurement).std()) == pytest.approx(0.385, abs=0.01)
    assert output.nfe == 25


def test_noisy_pixels_are_denoised() -> None:
    """The error that corrected DDRM has with sigma_y = 0.1; the prior's own is 0.5."""
    x, measurement = measured(128, sigma_y=0.1)
    output = DDRM().sample(GaussianDenoiser(), measurement, noise(128), generators=way(128))
    assert bool(output.x.isfinite().all())
    assert float(seen(output.x - x, measurement).square().mean().sqrt()) == pytest.approx(0.12, abs=0.01)


def test_the_denoiser_never_sees_the_measurement() -> None:
    _, measurement = measured(2)
    denoiser = GaussianDenoiser()
    output = DDRM(n_steps=5).sample(denoiser, measurement, noise(2), generators=way(2))
    assert denoiser.measurements == [None] * 5
    assert output.nfe == denoiser.calls == 5


def test_a_measurement_is_required() -> None:
    denoiser = GaussianDenoiser()
    with pytest.raises(OperatorError, match=r"sampler 'ddrm' requires 'pinv'.*given nothing"):
        DDRM().sample(denoiser, None, noise(2), generators=way(2))
    assert denoiser.calls == 0
