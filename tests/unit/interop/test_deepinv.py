"""deepinv's physics as operators, and back; against the real package, where it is installed."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from invfusion.errors import OperatorError
from invfusion.interop import from_deepinv, measurement_from_deepinv, to_deepinv, to_deepinv_reconstructor
from invfusion.metrics.tools.torchvision_import import import_torchvision
from invfusion.operators import Blur, Downsampling, Inpainting, LinearOperator, Measurement, check_operator

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepinv") is None, reason="deepinv is not installed")
SHAPE = (3, 12, 16)


@pytest.fixture(scope="module")
def dinv() -> Any:
    import_torchvision()
    import deepinv

    return deepinv


def kernel() -> Tensor:
    k = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    k[1, 1] += 4
    return k / k.sum()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def physics(dinv: Any, name: str) -> Any:
    p = dinv.physics
    if name == "inpainting":
        return p.Inpainting(img_size=SHAPE, mask=(random(1, *SHAPE[1:]) > 0.5).float())
    if name == "denoising":
        return p.Denoising()
    if name == "blur_fft":
        return p.BlurFFT(img_size=SHAPE, filter=kernel()[None, None])
    return p.Blur(filter=kernel()[None, None], padding="valid")


@pytest.mark.parametrize(("name", "tier"), [("inpainting", "exact"), ("blur_fft", "exact"), ("blur", "iterative")])
def test_a_physics_is_an_operator_of_its_tier(dinv: Any, name: str, tier: str) -> None:
    original = physics(dinv, name)
    operator = from_deepinv(original, SHAPE)
    report = check_operator(operator)
    # deepinv keeps what it computed in float32, so its operators are no better in float64.
    assert {f.name for f in report.failures} <= {"float64"}, str(report)
    assert operator.tier == report.tier == tier
    assert report.residual is not None
    assert report.residual < 1e-4
    x = random(2, *SHAPE)
    torch.testing.assert_close(operator.H(x), original.A(x))


def test_the_clone_does_not_follow_the_original(dinv: Any) -> None:
    original = physics(dinv, "inpainting")
    operator = from_deepinv(original, SHAPE)
    x = random(1, *SHAPE)
    before = operator.H(x)
    original.A(x, mask=torch.zeros(1, *SHAPE))
    torch.testing.assert_close(operator.H(x), before)


def test_the_range_and_the_noise_level_are_exact(dinv: Any) -> None:
    u, n = random(2, *SHAPE), torch.randn(2, 3, 10, 14, generator=torch.Generator().manual_seed(1))
    blur = physics(dinv, "blur")
    measurement = measurement_from_deepinv(blur.A(u) + 0.1 * n, blur, SHAPE, sigma=0.1)
    expected = Measurement.of(2 * u - 1, from_deepinv(blur, SHAPE), 0.2, n)
    torch.testing.assert_close(measurement.y, expected.y)
    torch.testing.assert_close(measurement.sigma_y, expected.sigma_y)


@pytest.mark.parametrize(
    "operator",
    [
        Blur(SHAPE, kernel(), boundary="valid"),
        Downsampling(SHAPE, 2),
        Inpainting(SHAPE, random(*SHAPE[1:]) > 0.5),
    ],
    ids=lambda operator: operator.kind,
)
def test_an_operator_is_a_physics(dinv: Any, operator: LinearOperator) -> None:
    there = to_deepinv(operator)
    x = random(2, *SHAPE)
    assert float(there.adjointness_test(x)) < 1e-4
    y = there(x)
    torch.testing.assert_close(there.A(there.A_dagger(y)), y, rtol=1e-3, atol=1e-4)
    z = there.prox_l2(torch.zeros_like(x), y, gamma=10.0)
    gradient = 10 * there.A_adjoint(there.A(z) - y) + z
    assert float(gradient.norm() / y.norm()) < 1e-3


class Reads:
    """A model that returns what it can read of the measurement."""

    is_conditional = True

    def __call__(
        self, x: Tensor, sigma: Tensor, measurement: Measurement | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        assert measurement is not None
        self.sigma_y = measurement.sigma_y
        return measurement.H_pinv_y


def test_a_model_is_a_reconstructor(dinv: Any) -> None:
    blur = physics(dinv, "blur_fft")
    blur.noise_model = dinv.physics.GaussianNoise(sigma=0.05)
    u, model = random(2, *SHAPE), Reads()
    restored = to_deepinv_reconstructor(model)(blur.A(u), blur)
    torch.testing.assert_close(restored, u, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.sigma_y, torch.full((2,), 0.1))


def test_what_is_not_one_linear_map_is_refused(dinv: Any) -> None:
    own = dinv.physics.Inpainting(img_size=SHAPE, mask=(random(2, *SHAPE) > 0.5).float())
    with pytest.raises(OperatorError):
        from_deepinv(own, SHAPE)
    with pytest.raises(OperatorError, match="not one linear map"):
        from_deepinv(dinv.physics.Physics(A=lambda x, **_: x**2), SHAPE)
