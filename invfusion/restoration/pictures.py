"""Picture files in and out: what a file holds beside its pixels is kept, and nothing half written ever appears.

The unit of a picture is `Picture`: the image as the models take it, (1, C, H, W) in [-1, 1] with C = 1 or 3, upright,
and what has to stand in the restored file too: bits per channel, transparency, colour profile and EXIF data.
8-bit files, and 16-bit grey PNGs, need Pillow alone; other 16-bit files need the extra `pictures`.
"""

import importlib
import importlib.util
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from invfusion.data.images import MAX_PIXELS, open_image
from invfusion.errors import DataError, ShapeError
from invfusion.files import replacing

Bits = Literal[8, 16]
ORIENTATION = 0x0112
# Description, make, model, software, date, artist, copyright.
KEPT_TAGS = {270, 271, 272, 305, 306, 315, 33432}
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Suffix -> Pillow's name of the format.
FORMATS = {
    **{".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"},
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"},
}
# Rows or columns that a format has at most.
MOST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
KERNEL_FILES = (".npy", ".txt", ".csv")


@dataclass(frozen=True)
class Picture:
    """An image (1, C, H, W) in [-1, 1], float32, with what its file holds beside it.

    alpha: (H, W) opacity in [0, 1], or None; bits: per channel of the file; icc_profile, exif: as in the file, the
    orientation apart, which the pixels already have.
    """

    image: Tensor
    bits: Bits = 8
    alpha: NDArray[np.float32] | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None

    def with_image(self, image: Tensor) -> "Picture":
        """The same file with another image, (1, C, H, W); its opacity is enlarged to fit. A profile of grey values says
        nothing of colours, nor the other way round."""
        profile = self.icc_profile if image.shape[1] == self.image.shape[1] else None
        alpha = None if self.alpha is None else _fitted(self.alpha, image.shape[-2:])
        return replace(self, image=image, icc_profile=profile, alpha=alpha)


def load_image(path: Path | str) -> Tensor:
    """The image of a file, (1, C, H, W) float32 in [-1, 1]: C is 1 for grey files and 3 for all others.

    Upright as a viewer shows it; 16-bit files in their full precision. Raises `DataError`.
    """
    return load_picture(path).image


def load_picture(path: Path | str) -> Picture:
    """A file with what it holds beside its pixels. Raises `DataError` naming the file and what is wrong with it."""
    return read_picture(read_file(path), str(path))


def read_file(path: Path | str) -> bytes:
    """The bytes of a file. Raises `DataError` where it cannot be read or is empty."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    if not content:
        raise DataError(f"{path}: the file is empty")
    return content


def read_picture(content: bytes, origin: str) -> Picture:
    """A picture from the bytes of its file; `origin` names it in errors. Raises `DataError`."""
    deep = _deep_tiff_pixels(content, origin)
    if deep is not None:
        pixels, orientation, profile = deep
        return _picture(_upright(pixels, orientation), profile, None)
    opened = open_image(content, origin)
    pixels, profile_holds = _pixels(opened, content, origin)
    exif = opened.getexif()
    profile = opened.info.get("icc_profile") if profile_holds else None
    return _picture(_upright(pixels, exif.get(ORIENTATION, 1)), profile, _kept_exif(exif))


def _picture(pixels: NDArray[Any], profile: bytes | None, exif: bytes | None) -> Picture:
    """From pixels (H, W, 1 to 4), upright, uint8 or uint16."""
    values = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    colours = values[..., : 1 if values.shape[2] < 3 else 3].transpose(2, 0, 1)
    return Picture(
        image=torch.from_numpy(np.ascontiguousarray(colours))[None] * 2 - 1,
        bits=16 if pixels.dtype == np.uint16 else 8,
        alpha=values[..., -1] if values.shape[2] in (2, 4) else None,
        icc_profile=profile,
        exif=exif,
    )


def _kept_exif(exif: Image.Exif) -> bytes | None:
    """What EXIF says about the photograph; not about the layout of its file, which is written anew."""
    kept = Image.Exif()
    for tag in KEPT_TAGS & set(exif):
        kept[tag] = exif[tag]
    has_parts = False
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        content = exif.get_ifd(part)
        if content:
            kept.get_ifd(part).update(content)
            has_parts = True
    return kept.tobytes() if has_parts or len(kept) else None


def _pixels(opened: Image.Image, content: bytes, origin: str) -> tuple[NDArray[Any], bool]:
    """(H, W, 1 to 4) uint8 or uint16, and whether the file's colour profile is of these colours."""
    if content.startswith(PNG_SIGNATURE) and content[24] == 16 and content[25] != 0:
        return _three_axes(_codec("imagecodecs", origin).png_decode(content)), True
    if opened.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        grey = np.asarray(opened).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{origin}: grey values outside of 0 to 65535; convert it to 16 bits")
        return _three_axes(grey.astype(np.uint16)), True
    if opened.mode == "F":
        raise DataError(f"{origin}: a file of floating-point numbers states no range; convert it to 16 bits")
    if opened.mode == "1":
        opened = opened.convert("L")
    profile_holds = opened.mode not in ("CMYK", "YCbCr", "LAB", "HSV")
    if opened.mode not in ("L", "LA", "RGB", "RGBA"):
        opened = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
    return _three_axes(np.asarray(opened)), profile_holds


def _codec(module: str, origin: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"{origin}: files of 16 bits need more than Pillow; pip install -e '.[pictures]' in invfusion's "
            "repository, or convert to 8 bits"
        ) from None


def _deep_tiff_pixels(content: bytes, origin: str) -> tuple[NDArray[np.uint16], int, bytes | None] | None:
    """(H, W, channels), the orientation and the colour profile of a TIFF's first page; None unless it has 16 bits."""
    if not content.startswith(TIFF_SIGNATURES) or importlib.util.find_spec("tifffile") is None:
        return None
    try:
        with _codec("tifffile", origin).TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            if page.dtype != np.uint16:
                return None
            if page.imagewidth * page.imagelength > MAX_PIXELS:
                raise DataError(f"{origin}: more than {MAX_PIXELS} pixels")
            if page.photometric not in (1, 2):
                raise DataError(f"{origin}: a TIFF of 16 bits must be RGB, or grey with black as 0; convert it")
            pixels = page.asarray()
            if page.planarconfig == 2 and pixels.ndim == 3:
                pixels = pixels.transpose(1, 2, 0)
            return _three_axes(pixels), page.tags.valueof(ORIENTATION, 1), page.iccprofile
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{origin} is not an image that can be read: {' '.join(str(error).split())}") from error


def _three_axes(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., :4]


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels (H, W, C) turned and mirrored as EXIF's orientation, 1 to 8, asks."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _fitted(alpha: NDArray[np.float32], size: Iterable[int]) -> NDArray[np.float32]:
    """Opacity (h, w) for an image of another size: resampled."""
    height, width = size
    if alpha.shape == (height, width):
        return alpha
    enlarged = Image.fromarray(alpha).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(enlarged).clip(0, 1)


def save_image(image: Tensor, path: Path | str, like: Picture | None = None) -> None:
    """Write an image, (1, C, H, W) or (C, H, W) in [-1, 1], C = 1 or 3; the suffix says the format.

    like: bits, opacity, colour profile and EXIF data are taken over from this picture as far as the format holds them
    (JPEG, WebP and BMP have 8 bits, and JPEG and BMP no opacity). The file appears whole or not at all.

    Raises:
        DataError: the format is unknown, or the file cannot be written.
        ShapeError: this is no image, or it holds infinite or not-a-number values.
    """
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[0] != 1 or image.shape[1] not in (1, 3) or image.numel() == 0:
        raise ShapeError(f"an image to save is (1, C, H, W) with C = 1 or 3, got {tuple(image.shape)}")
    if not bool(image.isfinite().all()):
        raise ShapeError(f"{path}: the image holds infinite or not-a-number values and was not written")
    picture = (like or Picture(image)).with_image(image)
    check_format(path)
    check_sides(path, (image.shape[-2], image.shape[-1]))
    write_atomically(path, encoded(picture, FORMATS[Path(path).suffix.lower()]))


def check_format(path: Path | str) -> None:
    """Raise `DataError` unless the suffix names a format that can be written."""
    if Path(path).suffix.lower() not in FORMATS:
        raise DataError(f"{path}: the suffix names no format that can be written; use {', '.join(FORMATS)}")


def check_sides(path: Path | str, sides: tuple[int, int]) -> None:
    """Raise `DataError` where the format that the suffix names holds no picture of so many rows or columns."""
    most = MOST_SIDE.get(FORMATS.get(Path(path).suffix.lower(), ""), max(sides))
    if max(sides) > most:
        raise DataError(f"{path}: {sides[0]}x{sides[1]} pixels do not fit into this format ({most} a side); take .png")


def write_atomically(path: Path | str, content: bytes) -> None:
    """Write a file that appears whole or not at all. Raises `DataError` where that cannot be done."""
    try:
        with replacing(Path(path)) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def encoded(picture: Picture, file_format: str = "PNG") -> bytes:
    """The bytes of a picture's file; `file_format` is one of the values of `FORMATS`."""
    deep = picture.bits == 16 and file_format in ("PNG", "TIFF")
    pixels = _quantised(picture, np.uint16 if deep else np.uint8, with_alpha=file_format not in ("JPEG", "BMP"))
    if deep and file_format == "PNG":
        return _deep_png(pixels, picture)
    if deep:
        return _deep_tiff(pixels, picture)
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    extras = {"icc_profile": picture.icc_profile, "exif": picture.exif}
    quality = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(file_format, {})
    buffer = io.BytesIO()
    shown.save(buffer, file_format, **quality, **{name: value for name, value in extras.items() if value})  # type: ignore[arg-type]
    return buffer.getvalue()


def _quantised(picture: Picture, dtype: type[np.unsignedinteger[Any]], with_alpha: bool) -> NDArray[Any]:
    """(H, W, channels), opacity last."""
    channels = (picture.image[0].detach().cpu().double().numpy().transpose(1, 2, 0) + 1) / 2
    if with_alpha and picture.alpha is not None:
        channels = np.concatenate((channels, picture.alpha[..., None]), axis=2)
    top = np.iinfo(dtype).max
    return np.ascontiguousarray(np.rint(channels * top).clip(0, top).astype(dtype))


def _deep_png(pixels: NDArray[Any], picture: Picture) -> bytes:
    """A PNG of 16 bits: Pillow writes grey ones only. Every row is filtered by the difference to the one above."""
    height, width, n = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[n]
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((16, colour_type, 0, 0, 0))
    chunks = [_chunk(b"IHDR", header)]
    if picture.icc_profile:
        chunks.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc_profile)))
    if picture.exif:
        chunks.append(_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    chunks += [_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)), _chunk(b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def _deep_tiff(pixels: NDArray[Any], picture: Picture) -> bytes:
    n = pixels.shape[2]
    buffer = io.BytesIO()
    _codec("tifffile", "the output").imwrite(
        buffer,
        pixels[..., 0] if n == 1 else pixels,
        photometric="rgb" if n > 2 else "minisblack",
        extrasamples=["unassalpha"] if n in (2, 4) else None,
        planarconfig="contig" if n > 1 else None,
        compression="zlib",
        iccprofile=picture.icc_profile,
        metadata=None,
    )
    return buffer.getvalue()


def load_mask(path: Path | str) -> Tensor:
    """A mask from a picture file: (1, 1, H, W) float32, 1 where the image is missing: white, or lighter than half.

    Raises `DataError` where nothing is missing, or everything is.
    """
    return read_mask(read_file(path), str(path))


def read_mask(content: bytes, origin: str) -> Tensor:
    """A mask from the bytes of its file; see `load_mask`."""
    missing = (read_picture(content, origin).image.mean(dim=1, keepdim=True) > 0).float()
    if not bool(missing.any()):
        raise DataError(f"{origin}: the mask is empty; paint white what is missing")
    if bool(missing.all()):
        raise DataError(f"{origin}: all of the mask is white, so that nothing is known; paint black what is known")
    return missing


def load_kernel(path: Path | str) -> Tensor:
    """A blur kernel, (h, w) or, where a picture file has colours, (3, h, w), float32.

    A picture's kernel is scaled to sum to one, black being 0. Numbers (.npy, or a table in .txt or .csv) are kept.
    Raises `DataError` where the file holds no kernel.
    """
    if Path(path).suffix.lower() in KERNEL_FILES:
        return _checked_kernel(_read_numbers(path), str(path))
    return read_kernel(read_file(path), str(path))


def read_kernel(content: bytes, origin: str) -> Tensor:
    """A blur kernel from the bytes of a picture file; see `load_kernel`."""
    kernel = (read_picture(content, origin).image[0] + 1) / 2
    if bool((kernel == kernel[:1]).all()):
        kernel = kernel[0]
    kernel = _checked_kernel(kernel, origin)
    return kernel / kernel.sum((-2, -1), keepdim=True)


def _read_numbers(path: Path | str) -> Tensor:
    try:
        if Path(path).suffix.lower() == ".npy":
            return torch.from_numpy(read_array(read_file(path)))
        text = read_file(path).decode().replace(",", " ")
        return torch.from_numpy(np.loadtxt(io.StringIO(text), dtype=np.float32, ndmin=2))
    except ValueError as error:
        raise DataError(f"{path}: not a table of numbers ({error})") from error


def read_array(content: bytes) -> NDArray[np.float32]:
    """The numbers of a .npy file. Raises `ValueError` where it holds no array."""
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        # Damaged heads fail in many ways.
        raise ValueError(str(error)) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise ValueError("an archive, or an array of other things than real numbers")
    return found.astype(np.float32)


def _checked_kernel(kernel: Tensor, origin: str) -> Tensor:
    if kernel.ndim not in (2, 3) or (kernel.ndim == 3 and kernel.shape[0] not in (1, 3)) or kernel.numel() == 0:
        raise DataError(f"{origin}: a kernel is (h, w), or (3, h, w) for one per channel, got {tuple(kernel.shape)}")
    if not bool(kernel.isfinite().all()):
        raise DataError(f"{origin}: the kernel holds infinite or not-a-number values")
    total = kernel.sum((-2, -1))
    if bool((total.abs() < 1e-6).any()):
        raise DataError(f"{origin}: the kernel sums to {float(total.min()):g}: such a blur leaves no brightness")
    return kernel
