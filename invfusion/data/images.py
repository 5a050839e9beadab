"""From the bytes of an image file to square RGB pixels of one size."""

import io
import struct
import warnings
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from invfusion.errors import DataError

Resize = Literal["bicubic", "lanczos", "adm"]
# A few kilobytes can claim to be an image that fills the memory.
MAX_PIXELS = 2**26
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
# What Pillow raises on damaged files of its various formats.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
_WIDE_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def open_image(content: bytes, origin: str) -> Image.Image:
    """Decode a whole image file; `origin` names it in errors. Of an animation, the first frame.

    Raises:
        DataError: the bytes are no image, a damaged one, or one of more than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # verify() sees a PNG with a damaged end, which load() lets pass; after it the file must be opened anew.
            Image.open(io.BytesIO(content)).verify()
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            image.load()
    except UnidentifiedImageError as error:  # its own message names a buffer in memory
        raise DataError(f"{origin} is not an image that can be read: no known format") from error
    except _DAMAGE as error:
        raise DataError(f"{origin} is not an image that can be read: {' '.join(str(error).split())}") from error
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a viewer shows it: EXIF orientation applied, transparency on white, 16-bit grey scaled to 8."""
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE_GREY:
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """The central square at size x size, by an anti-aliased filter."""
    if resize == "adm":
        return _fit_adm(image, size)
    return _central_square(image, min(image.size)).resize((size, size), FILTERS[resize])


def _fit_adm(image: Image.Image, size: int) -> Image.Image:
    """Box-average halves while the image is at least twice too large, bicubic to size, crop (methods 3.6, ImageNet)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _central_square(whole, size)


def _central_square(image: Image.Image, side: int) -> Image.Image:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_png(image: Image.Image) -> bytes:
    """Lossless PNG bytes; equal pixels give equal bytes under one version of Pillow and zlib."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """(C, H, W) uint8 of an RGB image."""
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
