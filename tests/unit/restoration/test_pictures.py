"""Picture files in and out."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import invfusion
from invfusion.errors import DataError, ShapeError
from invfusion.restoration.pictures import encoded, load_kernel, load_mask, load_picture, read_picture, save_image

RGB = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
WIDE = (np.arange(6 * 5 * 4, dtype=np.uint16) * 541).reshape(6, 5, 4)


def png(pixels: np.ndarray, **extras: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **extras)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_8_bit_files_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    source, copy = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(RGB).save(source, lossless=True)
    picture = load_picture(source)
    assert picture.image.shape == (1, 3, 6, 5)
    assert picture.image.min() >= -1
    save_image(picture.image, copy, like=picture)
    assert np.array_equal(np.asarray(Image.open(copy)), RGB)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_files_come_back_as_they_were(tmp_path: Path, suffix: str, channels: int) -> None:
    pytest.importorskip("imagecodecs")
    pixels = WIDE[..., :channels]
    first = read_picture(png(pixels[..., 0]), "grey")
    image = torch.from_numpy(pixels[..., : 1 if channels < 3 else 3] / 65535 * 2 - 1).float().permute(2, 0, 1)[None]
    alpha = (pixels[..., -1] / 65535).astype(np.float32) if channels in (2, 4) else None
    written = first.__class__(image, bits=16, alpha=alpha, icc_profile=b"a profile")
    save_image(image, tmp_path / f"a{suffix}", like=written)
    read = load_picture(tmp_path / f"a{suffix}")
    assert read.bits == 16
    assert read.icc_profile == b"a profile"
    torch.testing.assert_close(read.image, image, atol=1e-6, rtol=0)
    assert (read.alpha is None) == (alpha is None)
    assert alpha is None or np.abs(read.alpha - alpha).max() < 1e-7


def test_16_bit_colour_is_read_as_another_program_writes_it(tmp_path: Path) -> None:
    imagecodecs, tifffile = pytest.importorskip("imagecodecs"), pytest.importorskip("tifffile")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(WIDE[..., :3])))
    tifffile.imwrite(tmp_path / "a.tif", WIDE[..., :3], photometric="rgb")
    for name in ("a.png", "a.tif"):
        expected = torch.from_numpy(WIDE[..., :3].astype(np.float32)).permute(2, 0, 1)
        torch.testing.assert_close((load_picture(tmp_path / name).image[0] + 1) * 32767.5, expected, atol=0.01, rtol=0)
    save_image(load_picture(tmp_path / "a.png").image, tmp_path / "b.png", like=load_picture(tmp_path / "a.png"))
    assert np.array_equal(imagecodecs.png_decode((tmp_path / "b.png").read_bytes()), WIDE[..., :3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a description"
    source = tmp_path / "a.png"
    Image.fromarray(RGB).save(source, exif=exif)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(source)))
    picture = load_picture(source)
    save_image(picture.image, tmp_path / "b.png", like=picture)
    copy = Image.open(tmp_path / "b.png")
    assert np.array_equal(np.asarray(copy), expected)
    assert copy.getexif().get(0x0112, 1) == 1
    assert copy.getexif()[0x010E] == "a description"


def test_profile_opacity_and_greyness_are_kept() -> None:
    grey = np.stack((RGB[..., 0], 255 - RGB[..., 0]), axis=2)
    picture = read_picture(png(grey, icc_profile=b"a profile"), "grey")
    assert picture.image.shape == (1, 1, 6, 5)
    copy = Image.open(io.BytesIO(encoded(picture)))
    assert copy.mode == "LA"
    assert np.array_equal(np.asarray(copy), grey)
    assert copy.info["icc_profile"] == b"a profile"
    larger = picture.with_image(torch.zeros(1, 1, 12, 10))
    assert larger.alpha is not None
    assert larger.alpha.shape == (12, 10)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "RGBA"])
def test_other_modes_are_read(mode: str, tmp_path: Path) -> None:
    Image.fromarray(RGB).convert(mode).save(tmp_path / "a.tif")
    assert load_picture(tmp_path / "a.tif").image.shape[1] == (1 if mode == "1" else 3)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tif")
    for name, message in [
        ("empty.png", "is empty"),
        ("text.png", "not an image"),
        ("missing.png", "cannot be read"),
        ("float.tif", "no range"),
    ]:
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            invfusion.load_image(tmp_path / name)
    with pytest.raises(DataError, match="names no format"):
        invfusion.save_image(torch.zeros(1, 3, 2, 2), tmp_path / "a.xyz")
    with pytest.raises(ShapeError, match="not-a-number"):
        invfusion.save_image(torch.full((1, 3, 2, 2), torch.nan), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_text("what lay there before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"a\.png: cannot be written \(No space left"):
        save_image(torch.zeros(1, 3, 2, 2), target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert target.read_text() == "what lay there before"


def test_masks_are_white_where_something_is_missing(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5), np.uint8)
    pixels[1, 2:] = 255
    Image.fromarray(pixels).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png")
    assert mask.shape == (1, 1, 4, 5)
    assert mask.sum() == 3
    assert bool((mask[0, 0, 1, 2:] == 1).all())
    for value, message in [(0, "is empty"), (255, "nothing is known")]:
        Image.fromarray(np.full((4, 5), value, np.uint8)).save(tmp_path / "m.png")
        with pytest.raises(DataError, match=message):
            load_mask(tmp_path / "m.png")


def test_kernels(tmp_path: Path) -> None:
    pixels = np.zeros((3, 4), np.uint8)
    pixels[1, 1:3] = 200
    Image.fromarray(pixels).save(tmp_path / "k.png")
    assert load_kernel(tmp_path / "k.png")[1].tolist() == [0, 0.5, 0.5, 0]
    np.save(tmp_path / "k.npy", np.full((3, 3), 0.2))
    assert load_kernel(tmp_path / "k.npy").sum() == pytest.approx(1.8)
    (tmp_path / "k.csv").write_text("0.25,0.75\n0,0\n")
    assert load_kernel(tmp_path / "k.csv").tolist() == [[0.25, 0.75], [0, 0]]
    np.save(tmp_path / "k.npy", np.full((3, 3), np.nan))
    with pytest.raises(DataError, match="not-a-number"):
        load_kernel(tmp_path / "k.npy")
    Image.fromarray(pixels * 0).save(tmp_path / "k.png")
    with pytest.raises(DataError, match="sums to 0"):
        load_kernel(tmp_path / "k.png")


def test_exif_of_the_camera_alone_is_kept_and_a_profile_only_of_its_own_colours() -> None:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExposureTime] = 0.01
    buffer = io.BytesIO()
    Image.new("L", (6, 5), 90).save(buffer, "JPEG", exif=exif, icc_profile=b"grey")
    picture = read_picture(buffer.getvalue(), "it")
    assert picture.exif is not None
    assert picture.with_image(torch.zeros(1, 1, 5, 6)).icc_profile == b"grey"
    assert picture.with_image(torch.zeros(1, 3, 5, 6)).icc_profile is None


def test_deep_files_of_other_colours_are_refused() -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((5, 6), np.uint16), photometric="miniswhite")
    with pytest.raises(DataError, match="grey with black as 0"):
        read_picture(buffer.getvalue(), "it")
