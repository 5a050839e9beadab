import io
import os
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from noise_data import png
from PIL import Image, ImageCms

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


def exif_of(tag: int, kind: int) -> bytes:
    """An EXIF block with orientation 6 and one damaged tag."""
    entries = [struct.pack("<HHIHH", 274, 3, 1, 6, 0), struct.pack("<HHI4s", tag, kind, 1, b"\1\2\3\4")]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(sorted(entries)) + bytes(4)


@pytest.mark.filterwarnings("ignore:Truncated")
@pytest.mark.parametrize("kind", range(1, 14))
def test_damaged_metadata_stops_no_image(kind: int) -> None:
    for tag in (0x10F, 0x11A, 0x201, 0x829A, 0x8769, 0x8825, 0x9286, 0x9C9B):
        image = open_image(encoded(Image.new("RGB", (16, 8), "red"), "JPEG", exif=exif_of(tag, kind)), "it")
        assert sorted(to_rgb(image, "it").size) == [8, 16]


RAMP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
UNKNOWN_RANGE = {
    "float 0..1": encoded(Image.fromarray(RAMP), "TIFF"),
    "float 0..65535": encoded(Image.fromarray(RAMP * 65535), "TIFF"),
    "int32": encoded(Image.fromarray((RAMP * 2**30).astype(np.int32)), "TIFF"),
    "int16": encoded(Image.fromarray((RAMP * 100).astype(np.uint16)), "TIFF", tiffinfo={339: 2}),
    "int8": encoded(Image.fromarray((RAMP * 100).astype(np.uint8)), "TIFF", tiffinfo={339: 2}),
    "PFM": b"Pf\n8 8\n-1.0\n" + RAMP.tobytes(),
    "Lab": encoded(Image.new("LAB", (8, 8)), "TIFF"),
}


@pytest.mark.parametrize("name", UNKNOWN_RANGE)
def test_pixels_of_unknown_range_are_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match=r"it is not an image that can be read: pixels of unknown range .*save it with"):
        rgb_of(UNKNOWN_RANGE[name])


def pgm(maximum: int) -> bytes:
    pixels = np.round(RAMP * maximum).astype(">u2" if maximum > 255 else "u1")
    return b"P5 8 8 %d\n" % maximum + pixels.tobytes()


def twelve_bit_tiff() -> bytes:
    """Pillow reads these and does not write them."""
    values = np.round(RAMP * 4095).astype(int).ravel()
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(values[::2], values[1::2], strict=True)
    )
    tags = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 8), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + packed


WIDE = (RAMP * 65535).astype(np.uint16)
KNOWN_RANGE = {
    "16-bit PNG": encoded(Image.fromarray(WIDE)),
    "16-bit TIFF": encoded(Image.fromarray(WIDE), "TIFF"),
    "12-bit TIFF": twelve_bit_tiff(),
    "PGM to 1000": pgm(1000),
    "PGM to 65535": pgm(65535),
    "PGM to 200": pgm(200),
    "JPEG 2000": encoded(Image.fromarray(WIDE), "JPEG2000"),
}


@pytest.mark.parametrize("name", KNOWN_RANGE)
def test_pixels_of_known_range_fill_it(name: str) -> None:
    assert np.allclose(rgb_of(KNOWN_RANGE[name])[..., 0], RAMP * 255, atol=1.4)


def test_white_is_zero_is_turned_round() -> None:
    values = rgb_of(encoded(Image.fromarray(WIDE), "TIFF", tiffinfo={262: 0}))[..., 0]
    assert np.allclose(values, 255 - RAMP * 255, atol=1)


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "RGB", "1"])
def test_a_transparent_colour_lies_on_white(mode: str) -> None:
    black: object = (0, 0, 0) if mode == "RGB" else 0
    image = Image.new(mode, (4, 4), black)
    assert rgb_of(encoded(image, transparency=black)).min() == 255


def test_a_colour_profile_is_neither_applied_nor_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = open_image(encoded(Image.new("RGB", (4, 4), "red"), icc_profile=profile), "it")
    assert "icc_profile" in image.info
    rgb = to_rgb(image, "it")
    assert to_png(rgb) == to_png(Image.new("RGB", (4, 4), "red"))


def test_no_decoder_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DataError, match="no known format"):
        open_image(eps, "it.png")
    assert not (tmp_path / "ran").exists()


def test_only_listed_formats_are_opened() -> None:
    image = Image.new("RGB", (8, 8), "red")
    for kind in ("TGA", "PCX", "ICO", "SGI", "DDS", "PDF", "EPS", "IM", "MSP"):
        with pytest.raises(DataError, match="no known format"):
            open_image(encoded(image.convert("1") if kind == "MSP" else image, kind), "it")


def test_whatever_a_decoder_raises_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise NotImplementedError("an exotic kind")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    image = open_image(png(0), "it")
    with pytest.raises(DataError, match=r"it is not an image that can be read: damaged \(an exotic kind\)"):
        to_rgb(image, "it")


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 40_000)])
@pytest.mark.parametrize("resize", RESIZES)
def test_a_strip_is_not_enlarged_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, resize: str, size: tuple[int, int]
) -> None:
    made: list[tuple[int, int]] = []
    original = Image.Image.resize

    def watched(self: Image.Image, to: tuple[int, int], *arguments: object, **options: object) -> Image.Image:
        made.append(to)
        return original(self, to, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert fit(Image.new("RGB", size, "red"), 64, resize).size == (64, 64)
    assert max(width * height for width, height in made) <= 64 * 64 * 17


def test_the_middle_of_a_strip_is_taken() -> None:
    columns = np.linspace(0, 255, 1001).round().astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(columns[None, :, None], (10, 1001, 3)).copy())
    assert abs(np.asarray(fit(image, 16, "adm")).astype(int) - 128).max() <= 3
