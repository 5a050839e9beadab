"""The forms that a published comparison ran, by the numbers that their errors lead to."""

import math
from itertools import pairwise

import pytest
import torch
from gaussian import VARIANCE, GaussianDenoiser, measured, noise, way
from torch import Tensor

from invfusion.diffusion.schedules import edm_sigmas
from invfusion.rng import randn
from invfusion.samplers import DAPS, DDNM, DDRM, DPS, PiGDM, Sampler


def draw(sampler: Sampler, n: int, sigma_y: float = 0.0) -> tuple[Tensor, Tensor]:
    """Errors on the pixels that are seen, and values of the hidden ones."""
    x, measurement = measured(n, sigma_y)
    restored = sampler.sample(GaussianDenoiser(), measurement, noise(n), generators=way(n)).x
    visible = measurement.operator.H(torch.ones_like(x)) > 0
    return (restored - x)[visible], restored[~visible]


def rmse(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


def test_ddrm_erases_noisy_pixels() -> None:
    _, measurement = measured(16, sigma_y=0.1)
    sampler = DDRM(variant="published")
    restored = sampler.sample(GaussianDenoiser(), measurement, noise(16), generators=way(16)).x
    assert float(measurement.operator.H(restored).abs().max()) < 1e-5
    assert rmse(draw(DDRM(), 64, sigma_y=0.1)[0]) == pytest.approx(0.12, abs=0.01)


def test_ddrm_without_noise_is_the_original() -> None:
    _, measurement = measured(4)
    first, second = (
        DDRM(variant=variant).sample(GaussianDenoiser(), measurement, noise(4), generators=way(4)).x
        for variant in ("original", "published")
    )
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_ddnm_draws_too_little_noise() -> None:
    for variant, std in (("original", 0.425), ("published", 0.315)):
        error, hidden = draw(DDNM(variant=variant), 64)
        assert rmse(error) < 1e-5
        assert float(hidden.std()) == pytest.approx(std, abs=0.01)


def test_pigdm_is_deterministic() -> None:
    error, hidden = draw(PiGDM(variant="published"), 64)
    assert rmse(error) < 1e-3
    assert float(hidden.std()) == pytest.approx(0.489, abs=0.015)


def test_daps_forgets_the_measurement_at_the_last_level() -> None:
    assert rmse(draw(DAPS(n_levels=20, variant="published"), 8)[0]) == pytest.approx(0.1, abs=0.02)
    assert rmse(draw(DAPS(n_levels=20), 8)[0]) == pytest.approx(0.01, abs=0.003)


def test_dps_has_one_weight_at_all_levels() -> None:
    """0.5 times the gradient with respect to x itself, after ancestral steps on EDM's levels."""
    x, measurement = measured(2)
    H, y = measurement.operator, measurement.y
    draws, state = way(2), 80 * noise(2)
    for sigma, t in pairwise(edm_sigmas(12).tolist()):
        shrinkage = VARIANCE / (VARIANCE + sigma**2)
        residual = y - H.H(shrinkage * state)
        gradient = -shrinkage * residual / residual.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        c = t * math.sqrt(sigma**2 - t**2) / sigma
        z = randn(tuple(x.shape[1:]), draws) if t > 0 else 0
        old = (1 - shrinkage) * state / sigma
        state = shrinkage * state + math.sqrt(t**2 - c**2) * old + c * z - 0.5 * gradient
    sampler = DPS(n_steps=12, variant="published")
    output = sampler.sample(GaussianDenoiser(), measurement, noise(2), generators=way(2))
    torch.testing.assert_close(output.x, state, rtol=1e-4, atol=1e-4)


def test_pigdm_weighs_noise_by_the_prior_left() -> None:
    """The original trusts a noisy measurement less the lower the noise level; the published one never changes."""
    original, published = (draw(PiGDM(variant=variant), 32, sigma_y=0.3)[0] for variant in ("original", "published"))
    assert abs(rmse(original) - rmse(published)) > 0.01
