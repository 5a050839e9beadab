import math

import pytest
import torch
from gaussian import GaussianDenoiser, measured, noise, way
from pydantic import ValidationError

from invfusion.samplers import Heun


def test_output_follows_the_prior() -> None:
    output = Heun().sample(GaussianDenoiser(), None, noise(64), generators=way(64))
    assert float(output.x.std()) == pytest.approx(0.508, abs=0.006)


def test_nfe_is_what_the_denoiser_saw() -> None:
    for n_steps, expected in ((1, 1), (18, 35), (32, 63)):
        denoiser = GaussianDenoiser()
        output = Heun(n_steps=n_steps).sample(denoiser, None, noise(2), generators=way(2))
        assert output.nfe == denoiser.calls == expected


def test_nfe_counts_both_calls_of_guidance() -> None:
    denoiser = GaussianDenoiser()
    denoiser.calls_per_evaluation = 2
    assert Heun(n_steps=4).sample(denoiser, None, noise(1), generators=way(1)).nfe == 14


def test_second_order() -> None:
    """Four times the steps, a sixteenth of the error of the exact flow x ~ sqrt(v + sigma^2)."""
    start = noise(1).double()
    sampler = {n: Heun(n_steps=n, sigma_min=0.5, sigma_max=5) for n in (16, 64)}

    def error(n: int) -> float:
        x = integrate_to_sigma_min(sampler[n], 5 * start)
        exact = 5 * start * math.sqrt((0.25 + 0.5**2) / (0.25 + 5**2))
        return float((x - exact).abs().max())

    assert error(16) / error(64) == pytest.approx(16, rel=0.25)


def integrate_to_sigma_min(config: Heun, start: torch.Tensor) -> torch.Tensor:
    """Undo the final Euler step to 0, x = D(x'), which is not of second order."""
    output = config.sample(GaussianDenoiser(), None, start / config.sigma_max, generators=way(len(start)))
    return output.x * (0.25 + config.sigma_min**2) / 0.25


def test_churn_changes_draws_and_keeps_the_law() -> None:
    plain, churned = Heun(n_steps=64), Heun(n_steps=64, S_churn=20)
    a = plain.sample(GaussianDenoiser(), None, noise(64), generators=way(64)).x
    b = churned.sample(GaussianDenoiser(), None, noise(64), generators=way(64)).x
    assert float((a - b).abs().mean()) > 0.1
    assert float(b.std()) == pytest.approx(0.5, abs=0.03)


def test_noise_is_drawn_only_for_churn() -> None:
    draws = way(2)
    before = [g.get_state() for g in draws]
    Heun(n_steps=4).sample(GaussianDenoiser(), None, noise(2), generators=draws)
    Heun(n_steps=4, S_churn=10, S_min=1000).sample(GaussianDenoiser(), None, noise(2), generators=draws)
    assert all(torch.equal(g.get_state(), state) for g, state in zip(draws, before, strict=True))


def test_the_denoiser_gets_the_measurement() -> None:
    _, measurement = measured(2)
    denoiser = GaussianDenoiser()
    Heun(n_steps=2).sample(denoiser, measurement, noise(2), generators=way(2))
    assert all(seen is measurement for seen in denoiser.measurements)


def test_levels_must_be_ordered() -> None:
    with pytest.raises(ValidationError, match="sigma_min must be below"):
        Heun(sigma_min=90)
