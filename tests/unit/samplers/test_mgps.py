"""MGPS where its fits have a closed form: a mask and independent pixels, for which a diagonal Gaussian is exact."""

import math

import pytest
import torch
from gaussian import SHAPE, VARIANCE, GaussianDenoiser, half_mask, noise, way

from invfusion.diffusion.schedules import ddpm_sigmas
from invfusion.operators import Measurement
from invfusion.rng import generators, randn
from invfusion.samplers import MGPS
from invfusion.samplers.base import BoundDenoiser
from invfusion.samplers.mgps import Fit, divergence_gradient


def same_pixels(n: int, sigma_y: float = 0.0) -> Measurement:
    """Half of the pixels are seen, and each of them is 0.6."""
    operator = half_mask(n)
    y = operator.H(torch.full((n, *SHAPE), 0.6))
    return Measurement(y, operator, torch.full((n,), sigma_y))


def shrinkage(sigma: float) -> float:
    return VARIANCE / (VARIANCE + sigma**2)


def test_nfe_is_that_of_the_paper() -> None:
    """1764: per transition a denoised state, a midpoint's and the gradient steps; the read-out is the last state's."""
    denoiser = GaussianDenoiser()
    output = MGPS().sample(denoiser, same_pixels(1), noise(1), generators=way(1))
    assert output.nfe == denoiser.calls == 1764


def test_levels_are_the_papers_and_fewer_end_at_the_same_noise() -> None:
    even = torch.linspace(0, 999, 300, dtype=torch.float64).long().tolist()
    assert MGPS().times() == even[2:]
    for n_levels in (4, 16, 30):
        times = MGPS(n_levels=n_levels).times()
        assert (times[0], times[-1], len(times)) == (6, 999, n_levels - 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_that_of_the_divergence(seed: int) -> None:
    """Of KL(N(v, e^2rho) | N(mean, std^2)) + |y - H D(v + e^rho z)|^2 / 2 sigma^2, by autograd."""
    measurement = same_pixels(2)
    v, mean, rho, z = (randn(SHAPE, generators(seed, name, range(2))) for name in ("v", "mean", "rho", "z"))
    fit = Fit(measurement, torch.full((2, 1, 1, 1), 7.0), 0.4, mean, 0.3)
    v.requires_grad_(), rho.requires_grad_()
    kl = (-rho + ((v - mean) ** 2 + (2 * rho).exp()) / (2 * 0.3**2)).sum()
    residual = measurement.operator.H(shrinkage(0.4) * (v + rho.exp() * z)) - measurement.y
    expected = torch.autograd.grad(kl + 7.0 / 2 * residual.square().sum(), (v, rho))
    denoiser = BoundDenoiser(GaussianDenoiser(), None, None)
    actual = divergence_gradient(denoiser, fit, v.detach(), rho.detach(), z)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def closed_form(sampler: MGPS, sigma: float, seen: bool) -> tuple[float, float]:
    """Mean and variance of a pixel's output, with every fit at its optimum: the product of prior and potential."""
    sigmas = ddpm_sigmas()
    times = sampler.times()
    mean, variance = 0.0, float(sigmas[times[-1]]) ** 2
    for i in range(len(times) - 1, 0, -1):
        s, t, m = (float(sigmas[k]) for k in (times[i], times[i - 1], times[i - 1] // 2))
        toward_x = (m / s) ** 2 + (1 - (m / s) ** 2) * shrinkage(s)
        prior_variance = m**2 * (s**2 - m**2) / s**2
        precision = 1 / prior_variance + (shrinkage(m) ** 2 / sigma**2 if seen else 0)
        # x_m = on_x x + shift + noise of 1 / precision
        on_x = toward_x / prior_variance / precision
        shift = shrinkage(m) * 0.6 / sigma**2 / precision if seen else 0
        share = (t**2 - m**2) / (s**2 - m**2)
        to_t = share + (1 - share) * on_x
        mean = to_t * mean + (1 - share) * shift
        variance = to_t**2 * variance + (1 - share) ** 2 / precision + (s**2 - t**2) * share
    last = shrinkage(float(sigmas[times[0]]))
    return last * mean, last**2 * variance


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_its_law_is_that_of_exact_fits(sigma_y: float) -> None:
    """Enough gradient steps bring the fits to their optimum, whose law is a recursion of numbers."""
    n, sampler = 24, MGPS(n_levels=24, n_gradient_steps=60, n_gradient_steps_boosted=150, lr=0.02)
    measurement = same_pixels(n, sigma_y)
    x = sampler.sample(GaussianDenoiser(), measurement, noise(n), generators=way(n)).x
    visible = measurement.operator.H(torch.ones_like(x)) > 0
    for part, seen in ((x[visible], True), (x[~visible], False)):
        mean, variance = closed_form(sampler, max(sigma_y, 0.05), seen)
        assert float(part.mean()) == pytest.approx(mean, abs=0.03)
        assert float(part.std()) == pytest.approx(math.sqrt(variance), rel=0.06, abs=0.01)


def test_its_own_bias() -> None:
    """With perfect fits too, a seen pixel falls 9% short of its posterior mean here, and its spread is 1.45 times the
    posterior's: the prior's transition to x_m takes D(x_s) for x_0, so it is too narrow, and y counts too little.
    """
    exact_mean, exact_std = 0.6 * VARIANCE / (VARIANCE + 0.04), math.sqrt(VARIANCE * 0.04 / (VARIANCE + 0.04))
    mean, variance = closed_form(MGPS(), 0.2, seen=True)
    assert mean / exact_mean == pytest.approx(0.91, abs=0.01)
    assert math.sqrt(variance) / exact_std == pytest.approx(1.45, abs=0.02)
    _, hidden = closed_form(MGPS(), 0.2, seen=False)
    assert math.sqrt(hidden) == pytest.approx(math.sqrt(VARIANCE), rel=0.03)
