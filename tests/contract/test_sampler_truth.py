"""Every sampler with an ideal denoiser, held to what it says that its images follow."""

import functools
from collections.abc import Iterator

import pytest
import torch
from test_samplers import SETTINGS

from invfusion.degradations import FAMILIES
from invfusion.operators import Measurement
from invfusion.oracle import ExactDenoiser, GaussianMixture, Oracle, draw_measurements
from invfusion.rng import generator, generators, randn
from invfusion.samplers import SAMPLERS, Sampler
from invfusion.samplers.base import CAPABILITIES

SHAPE = (1, 4, 4)
N = 256
SMALL = {"matrix": {"min_rows": 2, "max_rows": 6}, "patch_inpainting": {"max_visible": 0.5}}
# Enough steps that what is left is sampling noise.
ACCURATE = {
    "heun": {"n_steps": 64},
    "dpmpp_2m": {"n_steps": 100},
    "deis": {"n_steps": 100},
    "flow": {"n_steps": 64},
    "pivot": {"n_steps": 16},
}
# Even with few steps, an approximation of the posterior must come nearer to it than draws of the prior do.
USES_THE_MEASUREMENT = 0.85


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def prior() -> GaussianMixture:
    """Two components, of which a measurement often leaves both possible."""
    draws = generator(0, "truth prior")
    return GaussianMixture.of_factors(
        SHAPE,
        torch.tensor([0.4, 0.6]),
        0.4 * torch.randn(2, 16, generator=draws),
        0.4 * torch.randn(2, 16, 3, generator=draws),
        torch.full((2, 16), 0.02),
    )


@functools.cache
def oracle(family: str, sigma_y: float) -> Oracle:
    return Oracle(prior(), draw_measurements(prior(), FAMILIES[family](**SMALL[family]), 4, sigma_y), n_samples=N)


@functools.cache
def prior_s_distance(family: str, sigma_y: float) -> float:
    """What a sampler that ignores the measurement gets."""
    verdict = oracle(family, sigma_y).judge(lambda m, noise, way: prior().sample(way).float())
    return verdict.scores["sliced_wasserstein"].value


def accepts(sampler: Sampler, denoiser: ExactDenoiser, measurement: Measurement) -> bool:
    required = sampler.requires | (sampler.requires_if_noisy if bool(measurement.sigma_y.max() > 0) else frozenset())
    return all(CAPABILITIES[name][1](denoiser, measurement) for name in required)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("family", ["patch_inpainting", "matrix"])
@pytest.mark.parametrize("kind", sorted(kind for kind, sampler in SAMPLERS.items() if sampler.follows != "nothing"))
def test_it_follows_what_it_says(kind: str, family: str, sigma_y: float) -> None:
    sampler = SAMPLERS[kind](**ACCURATE.get(kind, SETTINGS.get(kind, {})))
    denoiser, judge = ExactDenoiser(prior()), oracle(family, sigma_y)
    if not accepts(sampler, denoiser, judge.measurements[0]):
        pytest.skip(f"'{kind}' requires what an exact denoiser cannot offer")
    verdict = judge.judge(lambda m, noise, way: sampler.sample(denoiser, m, noise, generators=way).x)
    if type(sampler).follows == "posterior":
        assert verdict.passes, str(verdict)
    elif type(sampler).follows == "mean":
        # In units of the posterior's deviation; the input at the highest noise level still tells a little.
        assert verdict.scores["mean_error"].value < 0.02
        assert verdict.scores["spread"].value < 0.05
    else:
        assert verdict.scores["sliced_wasserstein"].value < USES_THE_MEASUREMENT * prior_s_distance(family, sigma_y)


def test_principal_components_of_the_exact_denoiser_are_the_posterior_s() -> None:
    measurement = oracle("matrix", 0.2).measurements[0].select([0, 0])
    noise, way = randn(SHAPE, generators(0, "start", range(2))), generators(0, "way", range(2))
    found = SAMPLERS["nppc"]().sample(ExactDenoiser(prior(), n_components=2), measurement, noise, generators=way)
    directions, stds = prior().given(measurement).principal_components(2)
    assert found.components is not None
    assert found.stds is not None
    torch.testing.assert_close(found.stds.double(), stds, rtol=0.01, atol=0)
    alignment = (found.components.double() * directions).flatten(2).sum(2).abs()
    assert float(alignment.min()) > 0.99
