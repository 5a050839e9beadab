"""The judge lets exact draws pass and catches decoys; what it says has the right size."""

import pytest
import torch
from tiny_priors import draws_of, mixture

from invfusion.degradations import FAMILIES
from invfusion.degradations.boxes import BoxOutpainting
from invfusion.errors import ConfigError, ShapeError
from invfusion.operators import Measurement
from invfusion.oracle import DECOYS, ExactDenoiser, GaussianMixture, Oracle, draw_measurements, exact_sampler
from invfusion.oracle.distances import sliced_wasserstein_squared, unit_directions
from invfusion.rng import generator, generators
from invfusion.samplers import Heun

SHAPE = (1, 4, 4)


@pytest.fixture(scope="module")
def prior() -> GaussianMixture:
    return mixture(SHAPE, n_components=2)


@pytest.fixture(scope="module", params=[0.0, 0.2])
def oracle(request: pytest.FixtureRequest, prior: GaussianMixture) -> Oracle:
    return Oracle(prior, draw_measurements(prior, FAMILIES["box_inpainting"](), n=6, sigma_y=request.param))


def test_exact_draws_pass(prior: GaussianMixture, oracle: Oracle) -> None:
    verdict = oracle.judge(exact_sampler(prior))
    assert verdict.passes
    assert 0.85 < verdict.scores["sliced_wasserstein"].ratio < 1.1
    assert verdict.scores["coverage_90"].value == pytest.approx(0.9, abs=0.04)
    assert verdict.scores["spread"].value == pytest.approx(1, abs=0.05)
    assert "passes" in str(verdict)


@pytest.mark.parametrize("name", DECOYS)
def test_decoys_are_caught(prior: GaussianMixture, oracle: Oracle, name: str) -> None:
    """A spread that is 10% off either way, and a mean that is off by a fifth of each pixel's deviation."""
    verdict = oracle.judge(exact_sampler(prior, **DECOYS[name]))
    assert not verdict.passes
    score = verdict.scores["sliced_wasserstein"]
    assert score.low < score.value < score.high
    assert score.low > score.floor
    if "spread" in DECOYS[name]:
        assert verdict.scores["spread"].value == pytest.approx(DECOYS[name]["spread"], rel=0.04)
    else:
        assert verdict.scores["mean_error"].ratio > 3


def test_heun_with_the_exact_conditional_denoiser_reaches_the_floor(prior: GaussianMixture, oracle: Oracle) -> None:
    denoiser, sampler = ExactDenoiser(prior), Heun(n_steps=64)
    verdict = oracle.judge(lambda m, noise, way: sampler.sample(denoiser, m, noise, generators=way).x)
    assert verdict.scores["sliced_wasserstein"].ratio <= 1.1
    assert verdict.passes


def test_heun_without_the_measurement_is_caught(prior: GaussianMixture, oracle: Oracle) -> None:
    denoiser, sampler = ExactDenoiser(prior), Heun(n_steps=16)
    verdict = oracle.judge(lambda _, noise, way: sampler.sample(denoiser, None, noise, generators=way).x)
    assert verdict.scores["sliced_wasserstein"].ratio > 3


def test_measurements_leave_something_open(prior: GaussianMixture) -> None:
    class AllVisible(BoxOutpainting):
        def sample(self, batch_size, image_shape, generator):
            return FAMILIES["matrix"](min_rows=64, max_rows=64).sample(batch_size, image_shape, generator)

    with pytest.raises(ConfigError, match="determines nearly every image"):
        draw_measurements(prior, AllVisible(), n=2)


def test_measurements_do_not_depend_on_their_number(prior: GaussianMixture) -> None:
    few, more = (draw_measurements(prior, FAMILIES["patch_inpainting"](max_visible=0.5), n, 0.1) for n in (2, 4))
    assert all(torch.equal(a.y, b.y) for a, b in zip(few, more, strict=False))


def test_sliced_wasserstein_of_a_shift() -> None:
    """All quantiles move by the shift's projection, whose square is |shift|^2 / D on average."""
    x = draws_of(mixture(SHAPE), 100).flatten(1)
    directions = unit_directions(4000, 16, generator(0, "directions"))
    shift = torch.full((16,), 0.5, dtype=torch.float64)
    assert sliced_wasserstein_squared(x, x + shift, directions) == pytest.approx(0.25, rel=0.1)
    assert sliced_wasserstein_squared(x, x.flip(0), directions) == 0


def test_candidates_and_measurements_of_the_wrong_shape_are_refused(prior: GaussianMixture) -> None:
    operator = FAMILIES["box_inpainting"]().sample(2, SHAPE, generator(0, "H"))
    pair = Measurement.of(prior.sample(generators(0, "x", range(2))).float(), operator)
    with pytest.raises(ShapeError, match="one image each"):
        Oracle(prior, [pair])
    with pytest.raises(ShapeError, match="returned"):
        Oracle(prior, [pair.select([0])], n_samples=4).judge(lambda m, noise, way: noise[:2])
