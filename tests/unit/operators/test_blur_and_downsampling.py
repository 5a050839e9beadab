"""Blur and down-sampling against scipy, Pillow and torch, and in-painting's convention."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, signal
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import Blur, Downsampling, Inpainting

SCIPY = {"circular": "wrap", "reflect": "mirror", "replicate": "nearest", "constant": "constant"}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("boundary", SCIPY)
@pytest.mark.parametrize("size", [(3, 3), (5, 2), (4, 4), (1, 7)], ids=str)
def test_blur_is_scipys_convolution(boundary: str, size: tuple[int, int]) -> None:
    x, kernel = random(1, 2, 11, 14), random(*size, seed=1)
    expected = [ndimage.convolve(channel, kernel.numpy(), mode=SCIPY[boundary]) for channel in x[0].numpy()]
    actual = Blur((2, 11, 14), kernel, boundary=boundary).H(x)[0]
    torch.testing.assert_close(actual, torch.from_numpy(np.stack(expected)))


def test_a_valid_blur_is_smaller_and_each_channel_may_have_its_kernel() -> None:
    x, kernels = random(1, 2, 11, 14), random(1, 2, 4, 3, seed=1)
    operator = Blur((2, 11, 14), kernels, boundary="valid")
    assert operator.measurement_shape == (2, 8, 12)
    for i in range(2):
        expected = signal.convolve2d(x[0, i].numpy(), kernels[0, i].numpy(), mode="valid")
        torch.testing.assert_close(operator.H(x)[0, i], torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("filter", "pillow", "torch_mode"),
    [
        ("bicubic", Image.Resampling.BICUBIC, {"mode": "bicubic", "antialias": True}),
        ("area", Image.Resampling.BOX, {"mode": "area"}),
        ("lanczos", Image.Resampling.LANCZOS, None),
        ("nearest", Image.Resampling.NEAREST, {"mode": "nearest-exact"}),
    ],
    ids=["bicubic", "area", "lanczos", "nearest"],
)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_downsampling_is_pillows_and_torchs(filter: str, pillow: Image.Resampling, torch_mode, factor: int) -> None:
    x = random(1, 1, 36, 60).float()
    y = Downsampling((1, 36, 60), factor, filter=filter).H(x)[0, 0]
    picture = Image.fromarray(x[0, 0].numpy()).resize((60 // factor, 36 // factor), pillow)
    torch.testing.assert_close(y, torch.from_numpy(np.array(picture)), rtol=0, atol=1e-6)
    if torch_mode is not None:
        torch.testing.assert_close(y, F.interpolate(x, size=y.shape, **torch_mode)[0, 0], rtol=0, atol=1e-6)


def test_white_is_missing() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    y = Inpainting((3, 2, 2), mask).H(torch.ones(1, 3, 2, 2))
    assert y[0, 0].tolist() == [[0, 1], [1, 1]]


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match=r"factor 2 does not divide.*crop them to 4x6"):
        Downsampling((1, 5, 7), 2)
    with pytest.raises(OperatorError, match="whole number"):
        Downsampling((1, 4, 4), 2.0)
    with pytest.raises(OperatorError, match="filter must be one of bicubic"):
        Downsampling((1, 4, 4), 2, filter="cubic")
    with pytest.raises(ShapeError, match="5x3 does not fit into images 4x4"):
        Blur((1, 4, 4), torch.ones(5, 3))
    with pytest.raises(OperatorError, match="boundary must be one of circular"):
        Blur((1, 4, 4), torch.ones(3, 3), boundary="same")
    with pytest.raises(OperatorError, match="1 is missing"):
        Inpainting((1, 2, 2), torch.tensor([[0, 255], [0, 255]]))
    with pytest.raises(ShapeError, match="mask"):
        Inpainting((1, 2, 2), torch.zeros(3, 3))


def test_a_large_image_needs_memory_linear_in_it() -> None:
    """No tensor that a blur or a down-sampling of 1.5 megapixels keeps is larger than a few images."""
    shape = (1, 1200, 1280)
    kernel = torch.zeros(9, 9)
    kernel[4, 2:7] = 0.2
    x = random(1, *shape).float()
    for operator in (Blur(shape, kernel, boundary="valid"), Downsampling(shape, 4)):
        y = operator.H(x)
        z = operator.damped_inverse(y, 0.05)
        residual = operator.H(operator.H_adjoint(z)) + 0.05 * z - y
        assert float(residual.norm() / y.norm()) < 1e-4
