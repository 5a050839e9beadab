"""Tiles: no seams, and each knows its own part of the measurement."""

import itertools

import pytest
import torch
from torch import Tensor

import invfusion
from invfusion.errors import ConfigError
from invfusion.operators import Bayer, Blur, Downsampling, Grayscale, Inpainting, LinearOperator, Measurement
from invfusion.restoration.tiles import TiledDenoiser, Window, chosen_tile, evenly, local_rule, windows
from invfusion.rng import generator

SHAPE = (1, 48, 40)
KERNEL = torch.ones(3, 5) / 15
OPERATORS = {
    "inpainting": Inpainting(SHAPE, torch.rand(48, 40, generator=generator(0, "m")) < 0.4),
    "valid blur": Blur(SHAPE, KERNEL, "valid"),
    "reflected blur": Blur(SHAPE, KERNEL, "reflect"),
    "downsampling": Downsampling(SHAPE, 2, "area"),
}


def normal(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name))


@pytest.mark.parametrize("n", [16, 17, 31, 40, 100])
@pytest.mark.parametrize("multiple", [1, 4])
def test_windows_cover_everything_and_overlap(n: int, multiple: int) -> None:
    n = n // multiple * multiple
    covered = torch.zeros(n)
    found = list(windows((n, 16), (16, 16), multiple))
    for window in found:
        covered[window.top : window.bottom] += 1
        assert window.top % multiple == 0
        assert window.bottom - window.top == 16
    assert covered.min() >= 1
    for one, two in itertools.pairwise(found):
        assert one.bottom - two.top >= 3


@pytest.mark.parametrize("n", [40, 48, 100, 1000, 1283])
@pytest.mark.parametrize("multiple", [1, 8])
def test_even_tiles_cover_an_image_with_little_waste(n: int, multiple: int) -> None:
    side, _ = evenly(48, multiple, (n, 48), overlap=8)
    found = list(windows((n, 48), (side, 48), multiple, overlap=8))
    assert side <= 48
    assert len(found) == max(1, -(-(n - 8) // 40))
    assert [found[0].top, found[-1].bottom] == [0, n]
    for one, two in itertools.pairwise(found):
        assert one.bottom - two.top >= 8
    assert side * len(found) < n + (len(found) - 1) * 8 + multiple * len(found)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_local_operator_measures_what_the_whole_one_does(name: str) -> None:
    operator, x = OPERATORS[name], normal(2, *SHAPE)
    measurement = Measurement(operator.H(x), operator)
    rule = local_rule(measurement)
    assert rule is not None
    for window in windows((48, 40), (16, 16), 4):
        rows, columns = window.area
        part = rule(measurement, window)
        tile = x[..., rows, columns]
        assert part.operator.image_shape == tuple(tile.shape[1:])
        torch.testing.assert_close(part.operator.H(tile), part.y, atol=1e-5, rtol=0)


def test_a_pointwise_denoiser_is_the_same_by_tiles() -> None:
    operator, x = OPERATORS["inpainting"], normal(1, *SHAPE)
    whole = invfusion.as_denoiser(lambda x, s: torch.tanh(x))
    tiled = TiledDenoiser(whole, (16, 16), Measurement(operator.H(x), operator))
    torch.testing.assert_close(tiled(x, torch.tensor(1.0)), whole(x, torch.tensor(1.0)))


def local_mean(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser with a small view, which differs at its tile's borders."""
    return torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False) / (1 + 0.1 * sigma.view(-1, 1, 1, 1))


def test_no_seams() -> None:
    """Across tile borders, the image by tiles is as smooth as the image in one piece."""
    operator: LinearOperator = Downsampling((1, 96, 96), 4, "area")
    rows = torch.linspace(-1, 1, 96)
    x = (rows[:, None] * rows[None]).expand(1, 1, 96, 96)
    net = invfusion.as_denoiser(local_mean)
    whole = invfusion.restore(operator.H(x), operator, net, tile=0, method="ddnm", progress=False).images
    tiled = invfusion.restore(operator.H(x), operator, net, tile=32, method="ddnm", progress=False).images
    inner = (..., slice(4, -4), slice(4, -4))
    jumps = (tiled - whole)[inner].diff(dim=-1).abs().mean((0, 1, 2))
    assert jumps.max() < 4 * jumps.median() + 1e-3


def test_the_whole_image_stays_true_to_y() -> None:
    """Of an operator that does not divide into tiles, the step for the whole image takes care."""
    operator = LinearOperator.from_functions(lambda x: x.flatten(1).cumsum(1)[:, ::7], image_shape=SHAPE)
    x = normal(1, *SHAPE)
    measurement = Measurement(operator.H(x), operator)
    tiled = TiledDenoiser(invfusion.as_denoiser(local_mean), (16, 16), measurement)
    told = tiled(normal(1, *SHAPE, name="n"), torch.tensor(1.0), measurement)
    assert (operator.H(told) - measurement.y).abs().max() < 1e-2 * measurement.y.abs().max()


def test_windows_see_only_bounded_tiles() -> None:
    seen: list[int] = []

    def record(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x.shape[-1] * x.shape[-2])
        return x

    operator = OPERATORS["inpainting"]
    invfusion.restore(
        operator.H(normal(1, *SHAPE)), operator, invfusion.as_denoiser(record), tile=16, method="ddnm", progress=False
    )
    assert max(seen) <= 16 * 16


def test_a_window_of_an_odd_place_sees_the_sensor_shifted() -> None:
    x = normal(1, 3, 21, 23)
    measurement = Measurement(Bayer((3, 21, 23), "GRBG").H(x), Bayer((3, 21, 23), "GRBG"), 0.05)
    rule = local_rule(measurement)
    assert rule is not None
    for top, left in itertools.product((0, 5, 6), (0, 7, 8)):
        part = rule(measurement, Window(top, top + 9, left, left + 10))
        torch.testing.assert_close(part.operator.H(x[..., top : top + 9, left : left + 10]), part.y)


def test_tiles_are_larger_than_what_a_wide_blur_reaches() -> None:
    def tile_for(kernel: tuple[int, int], tile: int | None = None) -> tuple[int, int] | None:
        operator = Blur((1, 2000, 3000), torch.ones(kernel), "valid")
        measurement = Measurement(torch.zeros(1, *operator.measurement_shape), operator, 0.1)
        return chosen_tile(lambda x, *_: x, tile, measurement)

    assert tile_for((3, 9)) == (512, 512)
    assert tile_for((3, 201)) == (804, 804)
    assert tile_for((3, 401)) == (1024, 1024)
    assert tile_for((601, 3)) == (1202, 1202)
    with pytest.raises(ConfigError, match="tile=100 is less than the 201 pixels"):
        tile_for((3, 201), 100)


@pytest.mark.parametrize("operator", [Bayer((3, 16, 16)), Grayscale((3, 16, 16)), Downsampling((3, 16, 16), 2)])
def test_windows_lie_on_the_device_of_the_measurement(operator: LinearOperator) -> None:
    y = torch.zeros(1, *operator.measurement_shape, device="meta")
    whole = Measurement.__new__(Measurement)
    for name, value in {"y": y, "operator": operator, "sigma_y": torch.zeros(1, device="meta")}.items():
        object.__setattr__(whole, name, value)
    rule = local_rule(whole)
    assert rule is not None
    assert rule(whole, Window(0, 8, 0, 8)).operator.device.type == "meta"
