"""From the bytes of an image file to square RGB pixels of one size."""

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from invfusion.errors import DataError

Resize = Literal["bicubic", "lanczos", "adm"]
# A few kilobytes can claim to be an image that fills the memory.
MAX_PIXELS = 2**26
# Of a file: far more than any image here, far less than a memory.
MAX_FILE_BYTES = 2**28
TOO_LONG = f"more than {MAX_FILE_BYTES >> 20} MiB"
# Of a strip that `adm` resizes as a whole before it cuts; no photograph is longer.
MAX_ASPECT = 16
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
# Pillow knows more, some of which are programs (EPS is run by Ghostscript) or guess at anything (TGA).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# How a viewer turns an image of this EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339
_EIGHT_BIT = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


class UnreadableImageError(DataError):
    """A file gives no image; `reason` is short and one of a few, to be counted by."""

    def __init__(self, origin: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{origin} is not an image that can be read: {reason}" + (f" ({detail})" if detail else ""))
        self.reason = reason


@contextlib.contextmanager
def naming(origin: str) -> Iterator[None]:
    """Whatever goes wrong in the block with an image becomes an `UnreadableImageError` of that origin."""
    try:
        yield
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:  # its own message names a buffer in memory
        raise UnreadableImageError(origin, "no known format") from None
    except Exception as error:  # on damaged files Pillow raises nearly every type there is
        raise UnreadableImageError(origin, "damaged", " ".join(str(error).split()) or type(error).__name__) from error


def open_image(content: bytes, origin: str) -> Image.Image:
    """Decode a whole image file of one of `FORMATS`; `origin` names it in errors. Of an animation, the first frame.

    Raises:
        UnreadableImageError: the bytes are no image, a damaged one, or one of more than `MAX_PIXELS`.
    """
    with naming(origin):
        # verify() sees a PNG with a damaged end, which load() lets pass; after it the file must be opened anew.
        Image.open(io.BytesIO(content), formats=_formats()).verify()
        image = Image.open(io.BytesIO(content), formats=_formats())
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImageError(
                origin, "too large", f"{image.width}x{image.height}, at most {MAX_PIXELS} pixels"
            )
        image.load()
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image, origin: str) -> Image.Image:
    """Plain 8-bit RGB: EXIF orientation applied, transparency on white, grey of 9 to 16 bits scaled to 8.

    Colour profiles are not applied, as the published preprocessing does not; the result carries none.

    Raises:
        UnreadableImageError: the pixels have no known range (floating point, signed, 32 bits), or are no RGB (Lab).
    """
    with naming(origin):
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        rgb = _on_white(_eight_bit(image, origin))
        rgb = rgb.transpose(turn) if turn is not None else rgb
        rgb.info = {}
    return rgb


def _eight_bit(image: Image.Image, origin: str) -> Image.Image:
    """The image in a mode of 8 bits a channel."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise UnreadableImageError(
            origin, "pixels of unknown range", "signed or floating point; save it with 8 or 16 bits"
        )
    if image.mode in _EIGHT_BIT:
        return image
    # These two decoders scale to 16 bits themselves.
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _narrow(image, tags.get(_BITS, (16,))[0], is_negative=tags.get(_PHOTOMETRIC) == 0)
    raise UnreadableImageError(origin, "pixels of unknown range", f"mode {image.mode}; save it with 8 or 16 bits")


def _narrow(image: Image.Image, bits: int, is_negative: bool) -> Image.Image:
    """Grey of `bits` bits to 8, rounded; a colour that is declared transparent stays so."""
    wide = np.asarray(image).astype(np.int64)
    largest = 2**bits - 1
    scaled = (wide.clip(0, largest) * 255 + largest // 2) // largest
    grey = Image.fromarray((255 - scaled if is_negative else scaled).astype(np.uint8))
    if isinstance(transparent := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8)))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int, resize: Resize) -> Image.Image:
    """The central square at size x size, by an anti-aliased filter."""
    if resize == "adm":
        return _fit_adm(_shorten(image), size)
    return _central_square(image, min(image.size)).resize((size, size), FILTERS[resize])


def crops(image: Image.Image, size: int, n: int, draws: torch.Generator) -> list[Image.Image]:
    """n squares of size x size pixels from random places of an image as it is; a smaller one gives its middle alone."""
    if min(image.size) <= size:
        return [fit(image, size, "bicubic")]
    corners = [[int(torch.randint(side - size + 1, (), generator=draws)) for side in image.size] for _ in range(n)]
    return [image.crop((left, top, left + size, top + size)) for left, top in corners]


def _fit_adm(image: Image.Image, size: int) -> Image.Image:
    """Box-average halves while the image is at least twice too large, bicubic to size, crop (methods 3.6, ImageNet)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _central_square(whole, size)


def _shorten(image: Image.Image) -> Image.Image:
    """The middle of a strip: all of a 1 x 60,000 image, enlarged, would fill the memory."""
    longest = MAX_ASPECT * min(image.size)
    # As much on both sides: the middle stays where it is.
    left, top = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


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
