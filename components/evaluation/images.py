"""The true images of an evaluation, of which only a few are in memory at a time."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from torch import Tensor

from invfusion.data import StagedDataset

# As many as are read at once where all of them are needed in turn.
PART = 64


@dataclass(frozen=True)
class Images:
    """n images with their keys and labels (n,) long, -1 without one; shape: (C, H, W).

    read: positions in [0, n) -> uint8 (len, C, H, W), in the order asked for.
    """

    keys: tuple[str, ...]
    labels: Tensor
    shape: tuple[int, ...]
    read: Callable[[Sequence[int]], Tensor]

    @classmethod
    def of_split(cls, dataset: StagedDataset, positions: Sequence[int]) -> Self:
        """Some images of a staged split."""
        return cls(
            keys=tuple(dataset.keys[i] for i in positions),
            labels=dataset.labels[list(positions)],
            shape=dataset.image_shape,
            read=lambda chosen: dataset.read([positions[i] for i in chosen]),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def parts(self) -> Iterator[Tensor]:
        """All of them in order, uint8 (at most PART, C, H, W) at a time."""
        for start in range(0, len(self), PART):
            yield self.read(range(start, min(start + PART, len(self))))

    @cached_property
    def sha256(self) -> str:
        """Of all pixels in order."""
        digest = hashlib.sha256()
        for part in self.parts():
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()
