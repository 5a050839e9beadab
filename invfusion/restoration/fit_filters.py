"""Learn `photos_noise.safetensors`: python -m invfusion.restoration.fit_filters [PICTURE ...]

Of scikit-image's photographs that are in the public domain (extra `pictures`), of dead leaves, and of pictures given
here. Noise of each level is added to parts of them; what the Gaussian estimate then misses is what the filters learn.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from invfusion.operators import MaskOperator, Measurement
from invfusion.restoration.adaptive import FILE, Filters
from invfusion.restoration.fit_photos import pictures
from invfusion.restoration.photos import load_photos
from invfusion.rng import generator, generators, randn

LEVELS = tuple(0.02 * 1.45**i for i in range(8))
SIDE = 160
# Parts of each picture.
PARTS = 1
# Large pictures are reduced to this longer side, which takes their camera's own losses away.
LONGER_SIDE = 1000


def parts(files: list[Path]) -> Tensor:
    """(N, 3, SIDE, SIDE) in [-1, 1]."""
    found = [torch.from_numpy(p).permute(2, 0, 1).float() for p in pictures()]
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1)
    cut = []
    for number, picture in enumerate(found):
        u = torch.rand(PARTS, 2, generator=generator(0, "filters/part", number))
        for row, column in (u * (torch.tensor(picture.shape[1:]) - SIDE)).long().tolist():
            cut.append(picture[:, row : row + SIDE, column : column + SIDE])
    return torch.stack(cut)


def fit(x: Tensor) -> dict[str, Tensor]:
    """What `adaptive.Ladder` takes, in half precision, learned from images (N, 3, SIDE, SIDE)."""
    prior = load_photos()
    learned = []
    for number, level in enumerate(LEVELS):
        noise = randn(tuple(x.shape[1:]), generators(number, "filters/noise", range(len(x))))
        measurement = Measurement.of(x, MaskOperator(tuple(x.shape[1:]), torch.ones(1, 1, SIDE, SIDE)), level, noise)
        law = prior.law_of(x.shape, measurement)
        estimate, gap = law.gaussian_mean, measurement.y - law.gaussian_mean
        learned.append(Filters.learned(*(law.law.planes(images) for images in (estimate, gap, x))))
        sys.stdout.write(f"{level}\n")
        sys.stdout.flush()
    names = ("weights", "strengths", "coherences")
    tensors = {name: torch.stack([getattr(filters, name) for filters in learned]).half() for name in names}
    return tensors | {"levels": torch.tensor(LEVELS)}


def main() -> None:
    """Write the file."""
    save_file(fit(parts([Path(name) for name in sys.argv[1:]])), FILE)
    FILE.chmod(0o644)
    sys.stdout.write(f"{FILE}\n")


if __name__ == "__main__":
    main()
