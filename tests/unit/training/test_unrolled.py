"""Training through all steps of DDRM."""

import torch
from torch import Tensor, nn

from invfusion.degradations import FAMILIES
from invfusion.diffusion.losses import Condition
from invfusion.operators import Measurement
from invfusion.rng import generator, generators, randn
from invfusion.samplers import UnrolledDDRM
from invfusion.training.unrolled import UnrolledDDRMLoss

SHAPE = (3, 8, 8)


class Shrinker(nn.Module):
    """D = x / (1 + a sigma^2), with one number to learn; remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0))
        self.given: list[tuple[object, ...]] = []

    def forward(self, x: Tensor, sigma: Tensor, *condition: object) -> Tensor:
        self.given.append(condition)
        return x / (1 + self.a * sigma.view(-1, 1, 1, 1) ** 2)


def case(n: int = 16) -> tuple[Tensor, Condition]:
    x = randn(SHAPE, generators(0, "x", range(n))) / 2
    operator = FAMILIES["patch_inpainting"](max_visible=0.9).sample(
        batch_size=n, image_shape=SHAPE, generator=generator(0, "H")
    )
    return x, Condition(Measurement.of(x, operator), torch.arange(n))


def test_its_gradient_passes_through_every_step() -> None:
    """The derivative of the whole loss, by finite differences in float64."""
    x, condition = case()
    network = Shrinker().double()
    loss = UnrolledDDRMLoss(sampler=UnrolledDDRM(n_steps=3))

    def value() -> Tensor:
        return loss(network, x, condition, generator(0, "noise")).per_sample.mean()

    (gradient,) = torch.autograd.grad(value(), network.a)
    values = []
    for a in (1.001, 0.999):
        with torch.no_grad():
            network.a.fill_(a)
            values.append(float(value()))
    torch.testing.assert_close(float(gradient), (values[0] - values[1]) / 0.002, rtol=1e-3, atol=0)


def test_the_network_is_told_all_but_the_measurement() -> None:
    x, condition = case(2)
    network = Shrinker()
    UnrolledDDRMLoss(sampler=UnrolledDDRM(n_steps=2))(network, x, condition, generator(0, "noise"))
    assert network.given == [(None, condition.class_labels, None)] * 2


def test_training_lowers_the_error_of_its_restorations() -> None:
    """DDRM is not made for small errors: the unrolled network learns to be."""
    x, condition = case(64)
    network = Shrinker()
    with torch.no_grad():
        network.a.fill_(0.5)
    loss = UnrolledDDRMLoss(sampler=UnrolledDDRM(n_steps=5))
    adam = torch.optim.Adam(network.parameters(), lr=0.3)
    errors = []
    for step in range(30):
        output = loss(network, x, condition, generator(0, "noise", step))
        adam.zero_grad()
        torch.autograd.backward(output.per_sample.mean())
        adam.step()
        errors.append(float(output.logs["mse"].mean()))
    assert errors[-1] < 0.9 * errors[0]
