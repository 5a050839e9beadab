"""Consistency tuning and flow matching, against the formulas of their papers."""

import math

import pytest
import torch
from torch import Tensor

from invfusion.diffusion.losses import Condition, ConsistencyLoss, FlowMatchingLoss

X = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(1)


class Recording:
    """A denoiser of N(0, 0.25 I) that remembers its inputs."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        self.seen.append((x, sigma))
        return x * 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("stage", [0, 3, 7])
def test_two_points_of_one_trajectory(stage: int) -> None:
    network, loss = Recording(), ConsistencyLoss(stage_images=10, smoothing=1e-9)
    output = loss(network, X, Condition(images=10 * stage + 9), draws())
    (lower, r), (upper, sigma) = network.seen
    expected = sigma * (1 - (1 + 8 / (1 + sigma.exp())) / 2 ** (stage + 1)).clamp(min=0)
    # Where r is 0, the image itself is the target.
    torch.testing.assert_close(r.where(expected > 0, 0), expected)
    noise, same = (upper - X) / sigma.view(-1, 1, 1, 1), (lower - X) / r.view(-1, 1, 1, 1)
    torch.testing.assert_close(noise, same, rtol=0, atol=1e-2)
    target = torch.where((expected > 0).view(-1, 1, 1, 1), network(lower, r), X)
    rms = (network(upper, sigma) - target).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(output.per_sample, rms / (sigma - expected), rtol=1e-3, atol=1e-4)
    assert (expected > 0).float().mean() > 0.9 if stage > 2 else (expected == 0).any()


def test_the_stages_end() -> None:
    loss = ConsistencyLoss(stage_images=10, max_stage=2)
    found = [loss(Recording(), X, Condition(images=n), draws()).per_sample for n in (25, 29, 10**9)]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[1])


def test_only_the_upper_point_is_trained_and_both_see_one_dropout() -> None:
    dropout = torch.nn.Dropout(0.5)
    weight = torch.ones((), requires_grad=True)
    masks = []

    def network(x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        mask = dropout(torch.ones_like(x))
        masks.append(mask)
        return weight * mask * x

    before = torch.get_rng_state()
    output = ConsistencyLoss(stage_images=1)(network, X, Condition(images=9), draws())
    assert torch.equal(*masks)
    torch.autograd.backward(output.per_sample.sum())
    assert weight.grad is not None
    torch.set_rng_state(before)


def test_an_exact_consistency_function_has_the_lower_loss() -> None:
    """For N(0, v I) the flow carries x_sigma to sqrt(v / (v + sigma^2)) x_sigma: nearer to itself than the mean is."""
    scale = torch.ones((), requires_grad=True)

    def network(x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        return scale * x * (0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)).sqrt()

    x = 0.5 * torch.randn(4096, 1, 4, 4, generator=draws())
    loss = ConsistencyLoss(stage_images=1, max_stage=7, smoothing=1.0)
    exact = loss(network, x, Condition(images=9), draws()).per_sample.mean()

    def mean(x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        return x * 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)

    assert exact < 0.7 * loss(mean, x, Condition(images=0), draws()).per_sample.mean()


def test_flow_matching_is_the_error_of_the_velocity() -> None:
    network = Recording()
    output = FlowMatchingLoss()(network, X, Condition(), draws())
    x_sigma, sigma = network.seen[0]
    t = (sigma / (1 + sigma)).view(-1, 1, 1, 1)
    x_t, noise = (1 - t) * x_sigma, (x_sigma - X) / sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - t) * X + t * noise, rtol=1e-4, atol=1e-4)
    velocity = (x_t - network(x_sigma, sigma)) / t
    error = (velocity - (noise - X)).square().flatten(1).mean(1)
    torch.testing.assert_close(output.per_sample, error, rtol=1e-3, atol=1e-4)
    assert t.min() > 0.01
    assert t.max() < 0.99
    assert math.isclose(float(t.mean()), 0.5, abs_tol=0.1)
