"""The staged form of a dataset: decoded arrays on disk, read without decoding or copying more than is asked for."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from invfusion.data.manifest import MANIFEST, Split
from invfusion.errors import DataError
from invfusion.schema import Config

NO_LABEL = -1


class StagedShard(Config):
    """The sidecar of one array: where it came from and what its rows are. Labels are -1 where there is none."""

    source: str
    source_sha256: str
    pixels_sha256: str
    keys: list[str]
    labels: list[int]


class StagedManifest(Config):
    """The staged dataset: per split the names of its arrays (without suffix) in order, and a digest of all content."""

    name: str
    image_size: int = Field(ge=1)
    channels: int
    class_names: list[str]
    n_samples: dict[Split, int]
    digests: dict[Split, str]
    shards: dict[Split, list[str]]


def digest_of(shards: Iterable[StagedShard]) -> str:
    """SHA-256 in hex of keys, labels and pixels of all shards in order."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update("\n".join([shard.pixels_sha256, *shard.keys, *map(str, shard.labels)]).encode())
    return digest.hexdigest()


def read_sidecar(path: Path) -> StagedShard:
    """The sidecar of a staged array. Raises `DataError` where it is missing or damaged."""
    try:
        return StagedShard.model_validate_json(path.read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is missing or damaged: run the stage step again") from error


class Keys(Sequence[str]):
    """The names of many samples in a third of the memory that a list takes: of each shard all letters, and where names
    end.
    """

    def __init__(self) -> None:
        self._shards: list[tuple[bytes, NDArray[np.int32]]] = []
        self._firsts = [0]

    def append(self, keys: Sequence[str]) -> None:
        """Those of one more shard."""
        encoded = [key.encode() for key in keys]
        self._shards.append((b"".join(encoded), np.cumsum([0, *map(len, encoded)], dtype=np.int32)))
        self._firsts.append(self._firsts[-1] + len(keys))

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """One key, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        shard = bisect_right(self._firsts, position) - 1
        letters, ends = self._shards[shard]
        row = position - self._firsts[shard]
        return letters[ends[row] : ends[row + 1]].decode()


class StagedDataset:
    """One split of a staged dataset.

    Attributes:
        keys: the samples' names; labels: (N,) int64, -1 without a label; image_shape: (C, H, W);
        class_names: what the labels mean, empty without labels; digest: SHA-256 of the content.

    Raises:
        DataError: staging has not been done or not been finished, or a file of it is damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder, self._split = Path(folder), split
        manifest = _read_staged_manifest(self._folder)
        names = next((shards for name, shards in manifest.shards.items() if name == split), [])
        if not names:
            raise DataError(f"{folder} holds no '{split}' samples; its splits are {_count_list(manifest)}")
        self.keys = Keys()
        labels: list[Tensor] = []

        def sidecars() -> Iterator[StagedShard]:
            """One at a time; what is kept of it is a few bytes for each sample."""
            for name in names:
                sidecar = read_sidecar(self._folder / split / f"{name}.json")
                self.keys.append(sidecar.keys)
                labels.append(torch.tensor(sidecar.labels, dtype=torch.long))
                yield sidecar

        self.digest: str = digest_of(sidecars())
        self.labels: Tensor = torch.cat(labels)
        self._arrays = [_open(self._folder / split / f"{name}.npy") for name in names]
        self._first_rows = np.cumsum([0, *(len(array) for array in self._arrays)])
        self.image_shape: tuple[int, int, int] = (manifest.channels, manifest.image_size, manifest.image_size)
        self.class_names: list[str] = manifest.class_names
        if len(self.keys) != self._first_rows[-1]:
            raise DataError(f"{folder}/{split}: arrays and key lists differ in length; run the stage step again")

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[type["StagedDataset"], tuple[Path, str]]:
        """Worker processes open the files themselves: a pickled memory map would carry the whole dataset."""
        return StagedDataset, (self._folder, self._split)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Images (n, C, H, W) uint8 at positions in [0, N), in the order asked for."""
        images = np.empty((len(indices), *self.image_shape), dtype=np.uint8)
        for row, index in enumerate(indices):
            images[row] = self._image(index)
        return torch.from_numpy(images)

    def _image(self, index: int) -> NDArray[np.uint8]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        shard = int(np.searchsorted(self._first_rows, index, side="right")) - 1
        image: NDArray[np.uint8] = self._arrays[shard][index - self._first_rows[shard]]
        return image


def _read_staged_manifest(folder: Path) -> StagedManifest:
    try:
        return StagedManifest.model_validate_json((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise DataError(f"{folder / MANIFEST} does not exist: the stage step has not been run to its end") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / MANIFEST} is damaged: run the stage step again") from error


def _open(path: Path) -> NDArray[Any]:
    """An array of bytes in memory that is mapped from its file, which does not stay open, as NumPy's own maps do: large
    datasets have more shards than a process may have open files.
    """
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        if dtype != np.uint8:
            raise ValueError(f"it holds {dtype}")
        n = math.prod(shape)
        mapped = torch.from_file(str(path), shared=False, size=start + n, dtype=torch.uint8)
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise DataError(f"{path} is missing or damaged: run the stage step again") from error
    array: NDArray[Any] = mapped.numpy()[start:].reshape(shape)
    return array


def _count_list(manifest: StagedManifest) -> str:
    return ", ".join(f"{split} ({count})" for split, count in manifest.n_samples.items() if count) or "empty"
