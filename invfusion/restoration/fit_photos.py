"""Make `photos.json`: python -m invfusion.restoration.fit_photos

Fitted to scikit-image's photographs that are in the public domain (extra `pictures`) and to as many dead-leaves images,
drawn here. Everything is a mean over windows, with no knob that was tuned on test pictures.
"""

import json
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from invfusion.data.sources.dead_leaves import DeadLeaves
from invfusion.restoration.photos import PHOTOS_FILE

# Name in skimage.data -> where it is from.
PICTURES = {
    "astronaut": "NASA, public domain",
    "chelsea": "S. van der Walt, CC0",
    "coffee": "R. Michetti, CC0",
    "rocket": "SpaceX, public domain",
    "camera": "L. Varshney, CC0",
    "brick": "CC0Textures, CC0",
    "grass": "linolafett, CC0",
    "gravel": "CC0Textures, CC0",
}
WINDOW, STEP = 256, 64
N_FREQUENCIES = 20
N_LEAVES = 12


def pictures() -> Iterator[NDArray[np.float64]]:
    """(H, W, 3) in [-1, 1]."""
    from skimage import data

    for name in PICTURES:
        pixels = getattr(data, name)()
        yield (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)) / 127.5 - 1
    leaves = DeadLeaves(size=WINDOW)
    for number in range(N_LEAVES):
        yield leaves.draw(number) / 127.5 - 1


def windows(picture: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Overlapping squares of one picture."""
    height, width, _ = picture.shape
    for top in range(0, height - WINDOW + 1, STEP):
        for left in range(0, width - WINDOW + 1, STEP):
            yield picture[top : top + WINDOW, left : left + WINDOW]


def fit() -> dict[str, object]:
    """Mean colour, colour axes, and the radial power spectrum along each; every picture counts the same."""
    mean, second, power, n = np.zeros(3), np.zeros((3, 3)), 0.0, 0
    taper = np.outer(np.hanning(WINDOW), np.hanning(WINDOW))[..., None]
    for picture in pictures():
        flat = picture.reshape(-1, 3)
        mean, second, n = mean + flat.mean(0), second + flat.T @ flat / len(flat), n + 1
    mean, second = mean / n, second / n
    # Colours by their variation about the mean, luminance first.
    colours = np.linalg.eigh(second - np.outer(mean, mean))[1].T[::-1]
    for picture in pictures():
        parts = [
            np.abs(np.fft.rfft2(_centred(w, taper) @ colours.T * taper, axes=(0, 1))) ** 2 for w in windows(picture)
        ]
        power = power + np.mean(parts, axis=0) / (taper**2).sum() / n
    frequencies = np.geomspace(1.5 / WINDOW, np.sqrt(0.5), N_FREQUENCIES)
    return {
        "mean": mean.round(5).tolist(),
        "colours": colours.round(6).tolist(),
        "frequencies": frequencies.round(6).tolist(),
        "power": [[float(f"{v:.4g}") for v in row] for row in radial_means(np.asarray(power), frequencies)],
        "fitted_to": {**PICTURES, "dead_leaves": f"{N_LEAVES} images, seed 0, drawn by this package"},
    }


def _centred(window: NDArray[np.float64], taper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without its weighted mean, which would leak into all low frequencies."""
    centred: NDArray[np.float64] = window - (window * taper).sum((0, 1)) / taper.sum()
    return centred


def radial_means(power: NDArray[np.float64], frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power (H, W // 2 + 1, C), its mean around each frequency: (C, n)."""
    height, half, _ = power.shape
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.arange(half)[None] / height)
    bins = np.abs(np.log(f.clip(min=1e-9))[..., None] - np.log(frequencies)).argmin(-1)
    bins[f == 0] = -1
    means: NDArray[np.float64] = np.array(
        [[power[bins == k, c].mean() for k in range(len(frequencies))] for c in range(3)]
    )
    return means


def main() -> None:
    """Write the file."""
    PHOTOS_FILE.write_text(json.dumps(fit(), indent=1) + "\n")
    sys.stdout.write(f"{PHOTOS_FILE}\n")


if __name__ == "__main__":
    main()
