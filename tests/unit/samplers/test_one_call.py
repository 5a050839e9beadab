"""Sampling in one call: a seed stands for noise and generators."""

import pytest
import torch
from gaussian import SHAPE, GaussianDenoiser, measured, noise

from invfusion.errors import ShapeError
from invfusion.rng import generators, randn
from invfusion.samplers import Heun
from invfusion.samplers.base import STREAM

SAMPLER = Heun(n_steps=3, S_churn=1.0)


def test_a_seed_is_enough() -> None:
    _, measurement = measured(3)
    draws = generators(7, STREAM, range(3))
    explicit = SAMPLER.sample(GaussianDenoiser(), measurement, randn(SHAPE, draws), generators=draws).x
    assert torch.equal(SAMPLER.sample(GaussianDenoiser(), measurement, seed=7).x, explicit)
    assert not torch.equal(SAMPLER.sample(GaussianDenoiser(), measurement, seed=8).x, explicit)


def test_noise_given_alone_is_used() -> None:
    x = Heun(n_steps=3).sample(GaussianDenoiser(), None, noise(2), seed=1).x
    assert torch.equal(x, Heun(n_steps=3).sample(GaussianDenoiser(), None, noise(2), seed=2).x)


def test_nothing_measured_and_no_noise_is_refused() -> None:
    with pytest.raises(ShapeError, match="hand in noise"):
        SAMPLER.sample(GaussianDenoiser(), None)
