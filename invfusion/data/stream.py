"""Training batches by image count: the same for any number of worker processes, from any starting point."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from invfusion.data.order import indices
from invfusion.data.staged import StagedDataset


@dataclass(frozen=True)
class Batch:
    """images: (B, C, H, W) uint8; keys: B names; labels: (B,) int64, -1 where a sample has none."""

    images: Tensor
    keys: list[str]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class TrainingStream:
    """The endless stream of seeded epochs over a dataset, cut into micro-batches by image count.

    `n_workers` processes read ahead (0: none); they change nothing but speed.
    """

    dataset: StagedDataset
    seed: int
    micro_batch_size: int
    n_workers: int = 0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of each image."""
        return self.dataset.image_shape

    @property
    def highest_label(self) -> int:
        """The highest class label; -1 without classes."""
        return int(self.dataset.labels.max())

    def batch(self, start: int, count: int | None = None) -> Batch:
        """The samples start .. start + count of the stream; `count` defaults to one micro-batch."""
        count = self.micro_batch_size if count is None else count
        order = indices(len(self.dataset), self.seed, start, count)
        return Batch(self.dataset.read(order), [self.dataset.keys[i] for i in order], self.dataset.labels[order])

    def iterate(self, start: int, end: int, step: int = 1, offset: int = 0) -> Iterator[Batch]:
        """Every micro-batch j = offset, offset + step, ... that begins in [start, end), j counting from `start`.

        With step = world size and offset = rank, the processes share the stream without overlap.
        """
        size = self.micro_batch_size
        loader = DataLoader(
            _Batches(self, range(start + offset * size, end, step * size)),
            batch_size=None,
            num_workers=self.n_workers,
            generator=torch.Generator(),  # else the loader draws from the global generator
        )
        yield from loader


@dataclass(frozen=True)
class _Batches(Dataset[Batch]):
    stream: TrainingStream
    starts: range

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        return self.stream.batch(self.starts[index])
