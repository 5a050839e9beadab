"""The handwritten digits that scikit-learn carries, in colours derived from each key."""

import colorsys
import hashlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from invfusion.data.sources.base import Listing, SourceImage
from invfusion.schema import Config

# Drawn larger than any preset for digits needs, then cut to size by the same filter as every other image.
DRAWN_SIZE = 64
Colour = tuple[int, int, int]


class Digits(Config):
    """1,797 grey 8x8 digits (UCI optdigits test set), enlarged smoothly and given a paper and an ink colour each."""

    kind: Literal["digits"] = "digits"

    def open(self) -> Listing:
        """All digits, keyed by their number in scikit-learn's order; the label is the digit."""
        from sklearn.datasets import load_digits  # an optional dependency: only this source needs it

        digits = load_digits()
        return Listing(
            description="scikit-learn load_digits (UCI handwritten digits, test set), coloured by key",
            licence="scikit-learn's copy, BSD-3-Clause; E. Alpaydin, C. Kaynak (1998), UCI Machine Learning Repository",
            images=_draw_all(digits.images, digits.target),
            n_images=len(digits.images),
            class_names=tuple(str(digit) for digit in range(10)),
        )


def _draw_all(images: NDArray[Any], targets: NDArray[Any]) -> Iterator[SourceImage]:
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        key = f"digit{number:04d}"
        yield SourceImage(key, key, draw(image, *colours(key)), label=int(target))


def colours(key: str) -> tuple[Colour, Colour]:
    """Paper and ink of one key: two different hues, one dark and one light, either way round."""
    draws = [value / 255 for value in hashlib.sha256(key.encode()).digest()[:5]]
    hue, turn = draws[0], 0.2 + 0.6 * draws[1]
    dark = _rgb(hue, 0.16 + 0.16 * draws[2])
    light = _rgb(hue + turn, 0.66 + 0.18 * draws[3])
    return (dark, light) if draws[4] < 0.5 else (light, dark)


def _rgb(hue: float, lightness: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue % 1.0, lightness, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(image: NDArray[Any], paper: Colour, ink: Colour) -> Image.Image:
    """Blend paper and ink by an 8x8 image in [0, 16]. Integer arithmetic throughout: the same pixels everywhere."""
    grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    amount = np.asarray(grey.resize((DRAWN_SIZE, DRAWN_SIZE), Image.Resampling.BICUBIC)).astype(np.int64)[..., None]
    blended = np.array(ink) * amount + np.array(paper) * (255 - amount)
    return Image.fromarray(((blended + 127) // 255).astype(np.uint8))
