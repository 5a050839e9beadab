import math

import pytest
import torch

from invfusion.errors import ShapeError
from invfusion.metrics import psnr, psnr_ceiling


def test_by_hand() -> None:
    truth = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    images = truth.clone()
    images[0] += 10
    images[1, 0] -= 100
    expected = [10 * math.log10(255**2 / 100), 10 * math.log10(255**2 / (100**2 / 3))]
    assert psnr(images, truth).tolist() == pytest.approx(expected)


def test_no_error_is_infinite_and_one_grey_level_the_ceiling() -> None:
    truth = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images = truth.clone()
    images[1, 0, 0, 0] = 1
    assert psnr(images, truth).tolist() == pytest.approx([math.inf, psnr_ceiling((3, 4, 4))])


def test_only_8_bit_images_of_one_shape() -> None:
    with pytest.raises(ShapeError, match="uint8"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="one shape"):
        psnr(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
