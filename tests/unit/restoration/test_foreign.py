"""Networks of one's own as denoisers."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import invfusion
from invfusion.errors import ConfigError, ShapeError
from invfusion.operators import Inpainting

ALPHAS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
VARIANCE = 0.09


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x] of images of independent pixels N(0.2, VARIANCE)."""
    s2 = sigma.view(-1, 1, 1, 1) ** 2
    return 0.2 + (x - 0.2) * VARIANCE / (VARIANCE + s2)


def network(prediction: str, preserving: bool, scale: float = 1.0, shift: float = 0.0):
    """The exact network, wrapped as each kind of training would leave it."""

    def call(x_t: Tensor, t: Tensor) -> Tensor:
        if preserving:
            low = t.floor().long().clamp(max=998)
            logs = ((1 - ALPHAS) / ALPHAS).log() / 2
            sigma = torch.lerp(logs[low], logs[low + 1], t.double() - low).exp().float()
            a = (1 + sigma**2).rsqrt().view(-1, 1, 1, 1)
        else:
            sigma, a = t, torch.ones_like(t).view(-1, 1, 1, 1)
        s = sigma.view(-1, 1, 1, 1)
        x = x_t / a
        clean = exact((x - shift) / scale, sigma / scale) * scale + shift
        if prediction == "x0":
            return clean
        eps = (x - clean) / s
        if prediction == "eps":
            return eps
        alpha = (1 + s**2).rsqrt()
        return alpha * eps - alpha * s * clean

    return call


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
@pytest.mark.parametrize("schedule", [None, ALPHAS, "scheduler"])
def test_every_prediction_and_schedule_gives_the_clean_image(prediction: str, schedule: object) -> None:
    names = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}
    given, said = schedule, prediction
    if schedule == "scheduler":
        given, said = SimpleNamespace(alphas_cumprod=ALPHAS, config={"prediction_type": names[prediction]}), None
    denoiser = invfusion.as_denoiser(network(prediction, schedule is not None), said, given)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.05, 1.0, 20.0])
    torch.testing.assert_close(denoiser(x, sigma), exact(x, sigma), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(denoiser(x, torch.tensor(1.0)), exact(x, torch.tensor([1.0])), atol=2e-4, rtol=1e-3)


def test_networks_of_the_unit_range() -> None:
    denoiser = invfusion.as_denoiser(network("x0", False, scale=0.5, shift=0.5), value_range=(0, 1))
    x, sigma = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 2.0])
    torch.testing.assert_close(denoiser(x, sigma), exact(x, sigma))


def test_a_network_like_those_of_diffusers_restores() -> None:
    class UNet(torch.nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> SimpleNamespace:
            eps = network("eps", True)(sample, timestep)
            return SimpleNamespace(sample=torch.cat((eps, eps), dim=1))  # a variance beside it

    scheduler = SimpleNamespace(alphas_cumprod=ALPHAS, config=SimpleNamespace(prediction_type="epsilon"))
    denoiser = invfusion.as_denoiser(UNet(), schedule=scheduler)
    operator = Inpainting((3, 6, 5), torch.eye(6)[:, :5])
    y = operator.H(torch.full((1, 3, 6, 5), 0.3))
    result = invfusion.restore(y, operator, denoiser, n_samples=20, progress=False)
    missing = operator.mask[0, 0] == 0
    assert float(result.mean[..., missing].mean()) == pytest.approx(0.2, abs=0.1)
    assert result.std is not None
    assert float(result.std[..., missing].mean()) == pytest.approx(VARIANCE**0.5, rel=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction": "noise"}, "prediction must be"),
        ({"schedule": "linear"}, "a schedule is"),
        ({"schedule": torch.tensor([0.1, 0.9])}, "must fall"),
        ({"value_range": (1, 0)}, "value_range"),
    ],
)
def test_bad_descriptions_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        invfusion.as_denoiser(lambda x, t: x, **arguments)  # type: ignore[arg-type]


def test_a_network_of_another_shape_is_named() -> None:
    denoiser = invfusion.as_denoiser(lambda x, t: x[..., 1:])
    with pytest.raises(ShapeError, match="not into such images"):
        denoiser(torch.zeros(1, 3, 4, 4), torch.tensor(1.0))
