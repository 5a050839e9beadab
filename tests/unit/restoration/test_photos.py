"""The Gaussian model of photographs against its own equations, written out as matrices."""

import pytest
import torch
from torch import Tensor

from invfusion.operators import Bayer, Blur, Downsampling, Grayscale, Inpainting, LinearOperator, Measurement
from invfusion.restoration.photos import load_photos
from invfusion.rng import generator

SHAPE = (3, 10, 12)
N = 360


def holes() -> Tensor:
    mask = torch.zeros(10, 12)
    mask[2:6, 3:8] = 1
    mask[8, ::2] = 1
    return mask


@pytest.mark.parametrize(
    ("operator", "sigma_y"),
    [
        (Inpainting(SHAPE, holes()), 0.0),
        (Inpainting(SHAPE, holes()), 0.05),
        (Inpainting(SHAPE, torch.zeros(10, 12)), 0.2),
        (Bayer(SHAPE), 0.0),
        (Bayer(SHAPE), 0.05),
        (Grayscale(SHAPE), 0.05),
        (Blur(SHAPE, torch.ones(3, 4) / 12, "valid"), 0.02),
        (Blur(SHAPE, torch.rand(1, 3, 3, 4, generator=generator(0, "kernels")) / 6, "valid"), 0.02),
        (Downsampling(SHAPE, 2), 0.02),
    ],
    ids=lambda value: getattr(value, "kind", str(value)),
)
def test_the_estimate_is_that_of_the_matrices(operator: LinearOperator, sigma_y: float) -> None:
    law = load_photos().law_of((1, *SHAPE))
    x = law.sample([generator(0, "x")])
    y = operator.H(x)
    y = y + sigma_y * torch.randn(y.shape, generator=generator(0, "n"))
    found = load_photos().law_of((1, *SHAPE), Measurement(y, operator, sigma_y)).gaussian_mean
    basis = torch.eye(N).view(N, *SHAPE)
    C = law.law.filtered(basis).flatten(1).double()
    H = operator.H(basis).flatten(1).double().T
    seen = H.abs().sum(1) > 0
    H, gap = H[seen], (y - operator.H(law.law.mean.expand(x.shape))).flatten().double()[seen]
    # Without noise a little of it, which keeps the matrix invertible in its zero rows.
    K = H @ C @ H.T + max(sigma_y, 1e-3) ** 2 * torch.eye(len(H))
    exact = law.law.mean + (C @ H.T @ torch.linalg.solve(K, gap)).view(SHAPE).float()
    assert (found - exact).square().mean().sqrt() < 0.02 * (x - exact).square().mean().sqrt() + 2.5e-3


def test_draws_vary_as_the_picture_around_them_does() -> None:
    """A hole in a plain wall is surer than one in leaves."""
    x = torch.zeros(1, 3, 48, 96)
    x[..., 48:] = 0.5 * torch.randn(1, 3, 12, 12, generator=generator(0, "leaves")).repeat_interleave(
        4, 2
    ).repeat_interleave(4, 3)
    missing = torch.zeros(48, 96)
    missing[20:28] = 1
    operator = Inpainting((3, 48, 96), missing)
    law = load_photos().law_of(x.shape, Measurement(operator.H(x), operator, 0.0))
    draws = torch.cat([law.sample([generator(0, "draw", i)]) for i in range(8)])
    hole = draws.std(0)[:, 20:28]
    assert hole[..., 60:84].mean() > 4 * hole[..., 12:36].mean()
    assert draws.std(0)[:, :20].max() < 1e-4
