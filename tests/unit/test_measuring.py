"""Measuring images: each by its own key."""

import pytest
import torch
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.errors import ConfigError, ShapeError
from invfusion.measuring import Streams, measure, measure_batch
from invfusion.models import PRESETS
from invfusion.noise import GaussianNoise
from invfusion.rng import generator
from invfusion.samplers import SAMPLERS

MASKS, BLUR = FAMILIES["patch_inpainting"](max_visible=0.5), FAMILIES["strided_motion_blur"]()
NOISE = GaussianNoise(sigma_y=(0.1, 0.2))


def images(n: int) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=generator(0, "x")) * 2 - 1


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    x = images(4)
    whole = measure(x, MASKS, NOISE, ["a", "b", "c", "d"], seed=1)
    part = measure(x[2:], MASKS, NOISE, ["c", "d"], seed=1)
    assert torch.equal(whole.y[2:], part.y)
    assert torch.equal(whole.sigma_y[2:], part.sigma_y)
    assert not torch.equal(measure(x, MASKS, NOISE, ["a", "b", "c", "d"], seed=2).y, whole.y)


def test_streams_name_the_randomness() -> None:
    x = images(1)
    operators = measure_batch(x, MASKS, NOISE, "a", 0, Streams("operators", "noise")).operator
    again = measure_batch(x, MASKS, NOISE, "a", 0, Streams("operators", "other noise")).operator
    assert torch.equal(operators.tensors()["mask"], again.tensors()["mask"])


def test_a_batch_of_one_key_shares_what_shapes_tensors() -> None:
    assert measure_batch(images(6), BLUR, NOISE, 0, 0).y.shape[0] == 6


def test_images_of_different_strides_are_refused_with_the_remedy() -> None:
    with pytest.raises(ShapeError, match="measure_batch"):
        measure(images(8), BLUR)


def test_keys_must_be_as_many_as_images() -> None:
    with pytest.raises(ShapeError, match="2 images need as many keys, got 3"):
        measure(images(2), MASKS, keys=range(3))


@pytest.mark.parametrize(
    ("registry", "name", "nearest"),
    [
        (SAMPLERS, "hean", "heun"),
        (SAMPLERS, "DDRM", "ddrm"),
        (FAMILIES, "matrx", "matrix"),
        (PRESETS, "ffhq", "ffhq64"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(registry: dict[str, object], name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}"):
        registry[name]
