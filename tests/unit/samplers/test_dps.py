"""DPS is not linear, so its trajectories are compared with those of its authors' form."""

import math

import pytest
import torch
from gaussian import way
from linear_gaussian import SHAPE, ExactDenoiser, N, Problem, affine_denoiser, prior
from torch import Tensor

from invfusion.diffusion.schedules import ddpm_ladder
from invfusion.rng import randn
from invfusion.samplers import DPS


def variance_preserving(problem: Problem, start: Tensor, n_steps: int, zeta: float) -> Tensor:
    """Chung et al. 2023, Algorithm 1, with DDPM's coefficients: x (B, N) from sqrt(1 - a) * start."""
    a = 1 / (1 + ddpm_ladder(n_steps) ** 2)
    draws = way(len(start))
    x = (1 - a[0]).sqrt() * start
    for i in range(n_steps):
        alpha = a[i] / a[i + 1]
        G, g = affine_denoiser(math.sqrt(1 / a[i] - 1), *prior())
        x0 = x / a[i].sqrt() @ G.T + g
        residual = problem.y - x0 @ problem.A.T
        gradient = -(residual / residual.norm(dim=1, keepdim=True)) @ problem.A @ G / a[i].sqrt()
        mean = alpha.sqrt() * (1 - a[i + 1]) / (1 - a[i]) * x + a[i + 1].sqrt() * (1 - alpha) / (1 - a[i]) * x0
        std = ((1 - alpha) * (1 - a[i + 1]) / (1 - a[i])).sqrt()
        z = randn(SHAPE, draws).double().flatten(1) if std > 0 else 0
        x = mean + std * z - zeta * gradient
    return x


@pytest.mark.parametrize("name", ["mask", "blur", "matrix"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_it_is_the_published_algorithm_in_other_coordinates(name: str, sigma_y: float) -> None:
    problem = Problem.of(name, sigma_y)
    start = randn(SHAPE, way(3)).double()
    sampler = DPS(n_steps=50, zeta=0.3 * float(problem.q.max()))
    denoiser = ExactDenoiser()
    output = sampler.sample(denoiser, problem.measurement(3), start, generators=way(3))
    expected = variance_preserving(problem, start.flatten(1), 50, 0.3)
    torch.testing.assert_close(output.x.flatten(1), expected, rtol=1e-4, atol=1e-4)
    assert output.nfe == denoiser.calls == 50


def test_the_step_means_the_same_on_an_operator_of_another_scale() -> None:
    """2 H and 2 y say what H and y say."""
    problem = Problem.of("matrix", 0.0)
    one = problem.measurement(2)
    two = type(one)(2 * one.y, type(one.operator)(SHAPE, 2 * one.operator.matrix), one.sigma_y)
    start = randn(SHAPE, way(2)).double()
    x, same = (DPS(n_steps=20).sample(ExactDenoiser(), m, start, generators=way(2)).x for m in (one, two))
    torch.testing.assert_close(x, same)


def test_it_pulls_samples_towards_the_measurement() -> None:
    problem, start = Problem.of("mask", 0.0), randn(SHAPE, way(32)).double()

    def residual(zeta: float) -> float:
        x = DPS(n_steps=200, zeta=zeta).sample(ExactDenoiser(), problem.measurement(32), start, generators=way(32)).x
        return float((x.view(-1, N) @ problem.A.T - problem.y).norm(dim=1).mean())

    assert residual(0.5) < 0.1 * residual(0.0)
