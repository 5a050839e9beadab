import io
from typing import get_args

import numpy as np
import pytest
from noise_data import png
from PIL import Image

from invfusion.data.images import Resize, fit, open_image, to_array, to_png, to_rgb
from invfusion.errors import DataError

RESIZES = get_args(Resize)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb_of(content: bytes) -> np.ndarray:
    return np.asarray(to_rgb(open_image(content, "it"), "it"))


def test_png_round_trip_is_exact() -> None:
    image = open_image(png(0), "it")
    assert np.array_equal(to_array(open_image(to_png(image), "it")), to_array(image))
    assert to_array(image).shape == (3, 8, 8)


def test_grey_becomes_rgb() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(rgb_of(encoded(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    wide = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    values = rgb_of(encoded(Image.fromarray(wide)))[..., 0]
    assert np.array_equal(values, np.round(wide / 257))


def test_transparency_lies_on_white() -> None:
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[0, 0, 3] = 255
    values = rgb_of(encoded(Image.fromarray(pixels, "RGBA")))
    assert values[0, 0].tolist() == [0, 0, 0]
    assert values[1, 1].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (8, 4), "red")
    exif = Image.Exif()
    exif[274] = 6
    assert rgb_of(encoded(image, "JPEG", exif=exif)).shape == (8, 4, 3)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert rgb_of(encoded(Image.new("RGB", (5, 5), "white").convert(mode), kind)).tolist() == [[[255] * 3] * 5] * 5


@pytest.mark.parametrize("resize", RESIZES)
def test_fit_takes_the_central_square(resize: str) -> None:
    pixels = np.full((40, 120, 3), 255, dtype=np.uint8)
    pixels[:, 40:80] = (10, 20, 30)
    small = np.asarray(fit(Image.fromarray(pixels), 8, resize))
    assert small.shape == (8, 8, 3)
    inner = small[2:-2, 2:-2] if resize == "adm" else small  # it resizes before it crops, so neighbours reach in
    assert np.all(inner == (10, 20, 30))


@pytest.mark.parametrize("resize", RESIZES)
def test_fit_does_not_alias(resize: str) -> None:
    """A fine checkerboard becomes flat grey; dropping pixels would keep it black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.asarray(fit(Image.fromarray(board).convert("RGB"), 8, resize))
    assert abs(small.astype(int) - 127).max() <= 8


@pytest.mark.parametrize("resize", RESIZES)
def test_fit_of_a_fitting_image_changes_nothing(resize: str) -> None:
    image = open_image(png(3), "it")
    assert np.array_equal(to_array(fit(image, 8, resize)), to_array(image))


@pytest.mark.parametrize("content", [b"", b"text", b"GIF89a", b"\x89PNG\r\n\x1a\n", png(0)[:100], b"\xff\xd8\xff\xe0"])
def test_a_non_image_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"folder/it\.png is not an image that can be read") as raised:
        open_image(content, "folder/it.png")
    assert " at 0x" not in str(raised.value)


def test_a_truncated_jpeg_is_damage() -> None:
    whole = encoded(open_image(png(0, 64, 64), "it"), "JPEG")
    with pytest.raises(DataError, match="it is not an image"):
        open_image(whole[: len(whole) // 2], "it")
