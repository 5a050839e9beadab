"""What lies beyond a picture on a torus, against matrices."""

import pytest
import torch
from torch import Tensor

from invfusion.operators import Blur, Downsampling, Inpainting, LinearOperator, Measurement
from invfusion.restoration import wiener
from invfusion.restoration.photos import load_photos
from invfusion.restoration.strips import Strips
from invfusion.rng import generator

SIZE, END, BEYOND = (12, 15), (9, 10), (5, 6)


def strips() -> Strips:
    """Of a spectrum that is not even in either frequency alone, as those of blurs along a diagonal."""
    kernel = torch.zeros(1, *SIZE)
    kernel[0, 0, 0], kernel[0, 1, 1], kernel[0, 2, 3] = 1, 0.5, 0.3
    return Strips(1 / (torch.fft.rfft2(kernel).abs().square() + 0.1), SIZE, END, BEYOND)


def matrix(found: Strips, function: object) -> Tensor:
    """Of a map of the entries beyond the picture."""
    beyond = found.beyond.flatten().bool()
    basis = torch.eye(len(beyond))[beyond].view(-1, 1, *SIZE)
    return function(basis).flatten(1)[:, beyond].T.double()  # type: ignore[operator]


def test_the_strips_follow_the_picture_around_the_torus() -> None:
    rows, columns = strips().beyond.bool().all(1), strips().beyond.bool().all(0)
    assert rows.nonzero().flatten().tolist() == [0, 1, 9, 10, 11]
    assert columns.nonzero().flatten().tolist() == [0, 10, 11, 12, 13, 14]


def test_the_inverse_is_symmetric_and_nearly_that_of_the_precision() -> None:
    found = strips()
    Z, P = matrix(found, found.inverse), matrix(found, found.applied)
    torch.testing.assert_close(Z, Z.T, rtol=0, atol=1e-5)
    root = torch.linalg.cholesky(P)
    shares = torch.linalg.eigvalsh(root.T @ Z @ root)
    assert 0.5 < shares.min() <= shares.max() < 1 + 1e-5
    assert (shares > 0.99).double().mean() > 0.7


def test_nothing_of_the_picture_is_looked_at() -> None:
    found, r = strips(), torch.randn(2, 1, *SIZE, generator=generator(0, "r"))
    torch.testing.assert_close(found.inverse(r), found.inverse(r * found.beyond))
    assert bool((found.inverse(r)[..., ~found.beyond.bool()] == 0).all())


@pytest.mark.parametrize("sigma_y", [0.0, 0.02, torch.tensor([0.02, 0.3])], ids=["exact", "noisy", "of two levels"])
@pytest.mark.parametrize(
    "operator",
    [
        Inpainting((3, 60, 84), torch.zeros(60, 84)),
        Blur((3, 60, 84), torch.rand(5, 7, generator=generator(0, "kernel")) / 17, "valid"),
        *(Downsampling((3, 60, 84), 3, kind) for kind in ("bicubic", "area", "lanczos", "nearest")),  # type: ignore[arg-type]
        Downsampling((1, 60, 84), 2),
    ],
    ids=lambda value: f"{value.kind} {getattr(value, 'filter', '')}",
)
def test_few_steps_reach_the_filter(
    operator: LinearOperator, sigma_y: float | Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    solve = wiener.conjugate_gradients

    def counted(*args: object, **settings: object) -> object:
        solution = solve(*args, **settings)  # type: ignore[arg-type]
        steps.append(solution.n_iterations)
        return solution

    monkeypatch.setattr(wiener, "conjugate_gradients", counted)
    x = load_photos().law_of((2, *operator.image_shape)).sample([generator(0, "x", i) for i in range(2)])
    y = operator.H(x)
    y = y + torch.as_tensor(sigma_y).view(-1, 1, 1, 1) * torch.randn(y.shape, generator=generator(0, "n"))
    measurement = Measurement(y, operator, sigma_y)
    found = load_photos().law_of(x.shape, measurement).gaussian_mean
    assert len(steps) == 1
    assert steps[0] <= 8
    monkeypatch.setattr(wiener, "EXACT", 1e-7)
    exact = load_photos().law_of(x.shape, measurement).gaussian_mean
    assert (found - exact).abs().max() < 0.02
    assert (found - exact).square().mean().sqrt() < 2e-4
