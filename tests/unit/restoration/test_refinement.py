"""The network of `photos`: what it starts from, what it improves, and what it leaves alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from invfusion.errors import CheckpointError
from invfusion.operators import (
    Bayer,
    Blur,
    Downsampling,
    Grayscale,
    LinearOperator,
    MaskOperator,
    MatrixOperator,
    Measurement,
)
from invfusion.restoration import refinement, tiles
from invfusion.restoration.photos import load_photos
from invfusion.restoration.refinement import Refiner, knows, read_refiner, refined
from invfusion.rng import generator


def scene(height: int, width: int, channels: int = 3) -> Tensor:
    """Overlapping discs of pale colours, (1, C, height, width), with edges as a camera's."""
    rows, columns = torch.meshgrid(torch.arange(2 * height), torch.arange(2 * width), indexing="ij")
    x = torch.zeros(1, channels, 2 * height, 2 * width)
    for u in torch.rand(12, 6, generator=generator(0, "scene")):
        inside = (rows - 2 * height * u[0]) ** 2 + (columns - 2 * width * u[1]) ** 2 < (10 + 40 * u[2]) ** 2
        x[0, :, inside] = (1.2 * u[3] - 0.6 + 0.2 * u[3:6])[:channels, None]
    return avg_pool2d(x, 2)


def measured(x: Tensor, operator: LinearOperator, sigma_y: float) -> Measurement:
    noise = torch.randn(1, *operator.measurement_shape, generator=generator(0, "noise"))
    return Measurement.of(x, operator, sigma_y, noise)


def mask(height: int, width: int, channels: int = 3) -> MaskOperator:
    seen = (torch.rand(1, 1, height, width, generator=generator(0, "mask")) < 0.5).float()
    return MaskOperator((channels, height, width), seen)


def operators(shape: tuple[int, int, int]) -> list[tuple[LinearOperator, float]]:
    channels, height, width = shape
    colour = [(Bayer(shape), 0.0), (Grayscale(shape), 0.01)] if channels == 3 else []
    return [
        (MaskOperator(shape, torch.ones(1, 1, height, width)), 0.1),
        (mask(height, width, channels), 0.0),
        (Blur(shape, torch.ones(5, 4) / 20, "valid"), 0.01),
        (Downsampling(shape, 2), 0.002),
        *colour,
    ]


SHAPES = [(3, 40, 50), (1, 34, 46)]
CASES = [(shape, i) for shape in SHAPES for i in range(len(operators(shape)))]


@pytest.mark.parametrize(("shape", "i"), CASES)
def test_untrained_it_is_the_gaussian_estimate(shape: tuple[int, int, int], i: int) -> None:
    operator, sigma_y = operators(shape)[i]
    measurement = measured(scene(*shape[1:], shape[0]), operator, sigma_y)
    estimate = torch.randn(1, *shape, generator=generator(0, "estimate"))
    assert torch.equal(Refiner()(estimate, measurement), estimate)


@pytest.mark.parametrize(("shape", "i"), CASES)
def test_the_shipped_network_is_nearer_than_the_gaussian(shape: tuple[int, int, int], i: int) -> None:
    x = scene(*shape[1:], shape[0])
    operator, sigma_y = operators(shape)[i]
    if isinstance(operator, Grayscale):
        pytest.skip("discs have any colour")
    law = load_photos().law_of(x.shape, measured(x, operator, sigma_y))
    before, after = ((estimate - x).square().mean() for estimate in (law.gaussian_mean, law.mean))
    # The Gaussian alone is as good on a mosaic without noise.
    assert after < (1.15 if isinstance(operator, Bayer) else 0.9) * before


def test_known_pixels_stay_as_they_are() -> None:
    x, operator = scene(40, 50), mask(40, 50)
    mean = load_photos().law_of(x.shape, measured(x, operator, 0.0)).mean
    seen = operator.mask.bool().expand_as(x)
    assert torch.allclose(mean[seen], x[seen], atol=1e-5)


@pytest.mark.parametrize("i", range(4))
def test_tiles_leave_no_seams(monkeypatch: pytest.MonkeyPatch, i: int) -> None:
    shape = (3, 160, 96)
    x = scene(*shape[1:])
    measurement = measured(x, *operators(shape)[i])
    estimate = load_photos().law_of(x.shape, measurement).gaussian_mean
    whole = refined(estimate, measurement)
    monkeypatch.setattr(tiles, "TILE", 96)
    tiled = refined(estimate, measurement)
    error = (whole - x).square().mean()
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).square().mean() < 0.05 * error
    # The rows in which one tile ends and the next goes on.
    jump = (tiled - whole)[..., 1:, :] - (tiled - whole)[..., :-1, :]
    assert jump.square().mean() < 0.02 * error


def test_what_was_not_learned_from_keeps_the_gaussian_estimate() -> None:
    shape = (3, 8, 8)
    matrix = MatrixOperator(shape, torch.randn(1, 12, 192, generator=generator(0, "matrix")))
    everything = MaskOperator(shape, torch.ones(1, 1, 8, 8))
    assert not knows(Measurement(torch.zeros(1, 12), matrix, 0.01))
    assert not knows(Measurement(torch.zeros(1, *shape), everything, 0.5))
    assert not knows(Measurement(torch.zeros(1, 3, 1, 1), Downsampling(shape, 8), 0.01))
    assert knows(Measurement(torch.zeros(1, *shape), everything, 0.1))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "photos.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"photos\.safetensors: cannot be read"):
        read_refiner(file)


def test_products_in_bfloat16_move_no_pixel_by_a_grey_level(monkeypatch: pytest.MonkeyPatch) -> None:
    x = scene(64, 72)
    for operator, sigma_y in operators((3, 64, 72)):
        measurement, found = measured(x, operator, sigma_y), []
        for low in (False, True):
            monkeypatch.setattr(refinement, "multiplies_bf16", lambda _, low=low: low)
            found.append(refined(load_photos().law_of(x.shape, measurement).gaussian_mean, measurement))
        assert found[1].dtype == torch.float32
        difference = (found[1] - found[0]).abs()
        assert difference.max() < 2 / 255
        assert 0 < difference.square().mean().sqrt() < 0.2 * 2 / 255


@pytest.mark.parametrize(
    ("units", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)]
)
def test_bfloat16_is_for_processors_with_units_for_it(
    units: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncached = refinement.multiplies_bf16.__wrapped__
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    assert uncached("cpu") is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not uncached("cpu"), "an older torch does not say"
    assert not uncached("mps")
