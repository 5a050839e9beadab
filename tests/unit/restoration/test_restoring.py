"""restore(): the one function from a measurement, its operator and a model to images."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import invfusion
from invfusion.errors import ConfigError, InvFusionError, OperatorError, ShapeError
from invfusion.operators import Blur, Downsampling, Inpainting, MaskOperator
from invfusion.oracle import ExactDenoiser, GaussianMixture
from invfusion.restoration import MeasurementWarning
from invfusion.restoration.photos import load_photos
from invfusion.rng import generator

SHAPE = (3, 20, 17)


def smooth(n: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Draws of the model of photographs."""
    return load_photos().law_of((n, *shape)).sample([generator(0, "x", i) for i in range(n)]).clamp(-1, 1)


def holes(shape: tuple[int, ...] = SHAPE) -> Inpainting:
    mask = torch.zeros(shape[1:])
    mask[4:9, 3:12] = 1
    return Inpainting(shape, mask)


def test_import_is_light() -> None:
    code = "import invfusion, sys; assert 'torch' not in sys.modules; invfusion.restore; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_known_pixels_come_out_as_they_are_and_missing_ones_near_the_truth() -> None:
    x, operator = smooth(2), holes()
    y = operator.H(x)
    result = invfusion.restore(y, operator, method="mmse", progress=False)
    known = operator.mask.bool().expand_as(x)
    assert torch.equal(result.images[known], x[known])
    assert result.images.shape == result.mean.shape == x.shape
    assert (result.images - x)[~known].square().mean() < 0.5 * (y - x)[~known].square().mean()
    assert result.residual.tolist() == [0, 0]
    assert result.std is None


def test_draws_have_the_shape_spread_and_independence_they_should() -> None:
    x, operator = smooth(2), holes()
    y = operator.H(x)
    both = invfusion.restore(y, operator, n_samples=4, seed=1, progress=False)
    assert both.images.shape == (2, 4, *SHAPE)
    assert both.residual.shape == (2, 4)
    assert both.std is not None
    missing = ~operator.mask.bool().expand_as(x)
    assert both.std[missing].mean() > 0.05
    assert both.std[~missing].max() < 1e-5
    exact = invfusion.restore(y, operator, method="mmse", progress=False).images
    torch.testing.assert_close(both.mean, exact, atol=1e-4, rtol=0)
    first = invfusion.restore(y[:1], operator, n_samples=4, seed=1, progress=False)
    torch.testing.assert_close(first.images[0], both.images[0], atol=1e-3, rtol=0)
    other = invfusion.restore(y[:1], operator, n_samples=4, seed=2, progress=False)
    assert not torch.allclose(other.images[0], both.images[0], atol=1e-2)


@pytest.mark.parametrize(
    "operator",
    [
        Blur((3, 40, 37), torch.ones(5, 4) / 20, "valid"),
        Blur((3, 40, 37), torch.ones(5, 4) / 20, "circular"),
        Blur((3, 40, 37), torch.ones(5, 4) / 20, "reflect"),
        Downsampling((3, 40, 38), 2),
        Blur((1, 40, 37), torch.ones(5, 4) / 20, "valid"),
        MaskOperator((3, 40, 37), torch.ones(1, 1, 40, 37)),
    ],
    ids=lambda operator: f"{operator.kind}-{getattr(operator, 'boundary', '')}-{operator.image_shape[0]}",
)
def test_the_model_of_photographs_beats_doing_nothing(operator: object) -> None:
    x = smooth(1, operator.image_shape)  # type: ignore[attr-defined]
    sigma_y = 0.1 if isinstance(operator, MaskOperator) else 0.01
    clean = operator.H(x)  # type: ignore[attr-defined]
    y = clean + sigma_y * torch.randn(clean.shape, generator=generator(0, "n"))
    result = invfusion.restore(y, operator, method="mmse", sigma_y=sigma_y, progress=False)  # type: ignore[arg-type]
    error = (result.images - x).square().mean()
    trivial = operator.H_adjoint(y)  # type: ignore[attr-defined]
    if isinstance(operator, Downsampling):
        trivial = torch.nn.functional.interpolate(y, scale_factor=2, mode="bicubic")
    assert error < 0.9 * (trivial - x).square().mean()
    assert 0.3 * sigma_y < result.residual < 3 * sigma_y


def test_draws_of_photographs_follow_their_own_law() -> None:
    """Mean and spread of many draws against the posterior mean and what is really missing."""
    x, operator = load_photos().law_of((8, *SHAPE)).sample([generator(1, "x", i) for i in range(8)]), holes()
    y = operator.H(x)
    mean = invfusion.restore(y, operator, method="mmse", progress=False).images
    draws = invfusion.restore(y, operator, n_samples=8, progress=False)
    assert draws.std is not None
    spread = draws.std[:, :, 4:9, 3:12]
    assert ((draws.images.mean(1) - mean)[:, :, 4:9, 3:12].abs() / spread).mean() < 3 / 40**0.5
    truth = (mean - x)[:, :, 4:9, 3:12].square().mean().sqrt()
    assert spread.square().mean().sqrt() == pytest.approx(float(truth), rel=0.35)


def test_every_kind_of_sampler_and_no_graph() -> None:
    zero = torch.zeros(1, 60)
    prior = GaussianMixture.of_factors((3, 5, 4), torch.ones(1), zero, zero[..., None], torch.full((60,), 0.09))
    denoiser = ExactDenoiser(prior)
    operator = Inpainting((3, 5, 4), torch.eye(5)[:, :4])
    y = operator.H(torch.full((2, 3, 5, 4), 0.3)).requires_grad_()
    for method in ("sample", "mmse", "nppc", "dpmpp_2m", "pigdm"):
        result = invfusion.restore(y, operator, denoiser, method=method, progress=False)
        assert result.images.shape == (2, 3, 5, 4)
        assert not result.images.requires_grad
        assert result.residual.max() < 1e-5
    nppc = invfusion.restore(y, operator, denoiser, method="nppc", progress=False)
    assert nppc.components is not None
    assert nppc.std is not None
    assert nppc.std.shape == (2, 3, 5, 4)


def test_projection_is_for_measurements_without_noise_unless_asked_for() -> None:
    def net(x: Tensor, *_: object) -> Tensor:
        return 0 * x

    operator, x = holes(), smooth()
    y = operator.H(x)
    assert invfusion.restore(y, operator, net, project=False, method="heun", progress=False).residual > 0.05
    assert invfusion.restore(y, operator, net, method="heun", progress=False).residual < 1e-6
    assert invfusion.restore(y, operator, net, sigma_y=0.1, method="heun", progress=False).residual > 0.05
    assert invfusion.restore(y, operator, net, sigma_y=0.1, project=True, method="heun", progress=False).residual < 1e-6


def test_what_cannot_come_from_the_operator_is_said_with_figures() -> None:
    shape, kernel = (3, 80, 80), torch.eye(11) / 11
    x = smooth(1, shape)
    y = Blur(shape, kernel, "valid").H(x) + 0.003 * torch.randn(1, 3, 70, 70, generator=generator(0, "n"))

    def doubts(operator: Blur, sigma_y: float = 0.003) -> tuple[str, ...]:
        return invfusion.restore(y, operator, sigma_y=sigma_y, method="mmse", progress=False).doubts

    assert doubts(Blur(shape, kernel, "valid")) == ()
    with pytest.warns(MeasurementWarning, match=r"leave \[-1, 1\] by 0\.\d+"):
        assert doubts(Blur(shape, kernel.flip(0), "valid"))
    with pytest.warns(MeasurementWarning, match=r"leave \[-1, 1\] by 0\.\d+"):
        assert doubts(Blur((3, 70, 70), kernel, "circular"))
    x, noisy = smooth(1, shape), torch.randn(1, *shape, generator=generator(0, "n"))
    everything = MaskOperator(shape, torch.ones(1, 1, 80, 80))
    with pytest.warns(MeasurementWarning, match=r"sigma_y = 0\.02 allows 0\.028"):
        invfusion.restore(x + 0.1 * noisy, everything, sigma_y=0.02, method="mmse", progress=False)


def test_noise_is_estimated() -> None:
    pytest.importorskip("skimage")
    shape = (3, 64, 64)
    operator = MaskOperator(shape, torch.ones(1, 1, 64, 64))
    y = smooth(1, shape) + 0.2 * torch.randn((1, *shape), generator=generator(0, "n"))
    result = invfusion.restore(y, operator, sigma_y="estimate", method="mmse", progress=False)
    assert float(result.sigma_y) == pytest.approx(0.2, rel=0.1)
    with pytest.raises(ConfigError, match="state sigma_y"):
        invfusion.restore(y, holes(shape), sigma_y="estimate", progress=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "samle"}, ConfigError, "did you mean 'sample'"),
        ({"n_samples": 0}, ConfigError, "n_samples"),
        ({"n_samples": 2, "method": "mmse"}, ConfigError, "one answer"),
        ({"sigma_y": -1.0}, OperatorError, "sigma_y"),
        ({"sigma_y": "guess"}, ConfigError, "sigma_y"),
        ({"project": "maybe"}, ConfigError, "project"),
        ({"tile": -4}, ConfigError, "tile"),
        ({"y": torch.zeros(1, 3, 5, 5)}, ShapeError, r"y has the shape \(1, 3, 5, 5\)"),
        ({"y": torch.full((1, *SHAPE), torch.nan)}, ShapeError, "not-a-number"),
        ({"model": "nowhere/at/all"}, InvFusionError, "no such checkpoint folder"),
        ({"model": "ftp://a/b"}, InvFusionError, "addresses of 'ftp:'"),
        ({"model": "photos", "method": "nppc"}, OperatorError, "components"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    operator = holes()
    y = arguments.pop("y", operator.H(smooth()))
    with pytest.raises(error, match=message):
        invfusion.restore(y, operator, **arguments)  # type: ignore[arg-type]


def test_numbers_in_double_precision_are_as_good_and_the_callers_operator_stays_its_own() -> None:
    x = smooth()
    mask = holes().mask.double()
    given = MaskOperator(SHAPE, mask)
    sigma_y = torch.tensor([0.05], dtype=torch.float64)
    found = invfusion.restore(given.H(x), given, sigma_y=sigma_y, method="mmse")
    single = invfusion.restore(given.H(x), MaskOperator(SHAPE, mask.float()), sigma_y=0.05, method="mmse")
    torch.testing.assert_close(found.images, single.images)
    assert found.sigma_y.dtype == found.images.dtype == torch.float32
    assert given.mask.dtype == torch.float64
