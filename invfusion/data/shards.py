"""WebDataset shards: one tar member `<key>.png` and, with labels, one `<key>.cls` per sample."""

import contextlib
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from invfusion.data.manifest import RESTORE, SPLITS, ShardEntry, Split, sha256_of
from invfusion.errors import DataError

# Of one file in a shard: far more than any image here, far less than a memory.
MAX_FILE_BYTES = 2**28
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm")


@dataclass(frozen=True)
class Sample:
    """One record of a shard: an encoded image and its class (None without a label)."""

    key: str
    image: bytes
    label: int | None


def read_shard(path: Path) -> Iterator[Sample]:
    """All samples of a tar, in its order.

    Raises:
        DataError: the file is missing, cut short or damaged, or a record lacks its image; names the shard and the key,
            or the last key that could be read. Losses that WebDataset's own reading passes over are found too.
    """
    last = "the beginning"
    try:
        _check_sizes(path)
        for record in _records(path):
            sample = _sample(record, path)
            yield sample
            last = f"key '{sample.key}'"
        _check_end(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {RESTORE}, or rebuild it") from None
    except (tarfile.TarError, ValueError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path} is damaged or cut short after {last} ({_reason(error)}): {RESTORE}, or rebuild it"
        ) from error


def _reason(error: Exception) -> str:
    """The error's own words, without the stream objects that WebDataset adds to them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[0]).split(" @ ")[0] if error.args else type(error).__name__


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        files = tar_file_expander([{"url": str(path), "stream": stream}], handler=webdataset.reraise_exception)
        yield from group_by_keys(_each_once(files), handler=webdataset.reraise_exception)


def _each_once(files: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """End a record before a file that it has already: WebDataset would stop there, as if the shard were damaged."""
    names: set[str] = set()
    for file in files:
        if file.get("fname") in names:
            yield {}
            names.clear()
        names.add(file.get("fname", ""))
        yield file


def _check_sizes(path: Path) -> None:
    """A compressed or sparse member of a few bytes can claim any size."""
    with contextlib.suppress(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError), tarfile.open(path) as archive:
        for member in archive:
            if member.size > MAX_FILE_BYTES:
                raise ValueError(f"'{member.name}' claims {member.size} bytes, at most {MAX_FILE_BYTES} are read")


def _sample(record: dict[str, Any], path: Path) -> Sample:
    key = record["__key__"]
    if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts:
        raise DataError(f"{path}: the key '{key}' points out of its folder; rebuild the shard")
    image = next((record[suffix] for suffix in IMAGE_SUFFIXES if suffix in record), None)
    if image is None:
        found = ", ".join(sorted(name for name in record if not name.startswith("__")))
        raise DataError(f"{path}: key '{key}' has no image, only {found}; rebuild the shard")
    return Sample(key, image, _label(record.get("cls"), key, path))


def _label(text: bytes | None, key: str, path: Path) -> int | None:
    if text is None:
        return None
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{path}: key '{key}' has class {text!r}, expected a whole number from 0; rebuild the shard")
    return label


def _check_end(path: Path) -> None:
    """Find losses that look like a regular end to every tar reader: a cut between records, a destroyed header."""
    with path.open("rb") as file:
        if not file.read(512).strip(b"\0"):
            raise tarfile.ReadError("it holds no records")
        file.seek(0)
        if file.read(262)[257:] != b"ustar":
            return  # compressed: its own checksum covers the content
        with tarfile.open(path, "r:") as archive:
            archive.getmembers()
            end = archive.offset
        file.seek(end)
        if len(file.read(512)) < 512:
            raise tarfile.ReadError("its end is missing")
        file.seek(end)
        if any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b"")):
            raise tarfile.ReadError("a broken header hides the rest")


class ShardSetWriter:
    """Writes samples into `<split>-<number>.tar` under a folder, at most `shard_images` per tar.

    The same samples in the same order give the same bytes. Use as a context, then ask for `entries()`.
    """

    def __init__(self, folder: Path, shard_images: int) -> None:
        self._folder, self._shard_images = folder, shard_images
        self._writers: dict[Split, Any] = {}
        self._keys: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, split: Split, sample: Sample) -> None:
        """Append one sample to its split."""
        writer = self._writers.get(split) or self._open(split)
        record: dict[str, Any] = {"__key__": sample.key, "png": sample.image}
        if sample.label is not None:
            record["cls"] = str(sample.label).encode()
        writer.write(record)
        self._keys.setdefault(Path(writer.fname).name, []).append(sample.key)

    def _open(self, split: Split) -> Any:
        pattern = f"{str(self._folder).replace('%', '%%')}/{split}-%06d.tar"
        # Fixed times make equal input give equal bytes; DVC would see a change otherwise.
        self._writers[split] = webdataset.ShardWriter(pattern, maxcount=self._shard_images, mtime=0, verbose=0)
        return self._writers[split]

    def entries(self) -> list[ShardEntry]:
        """The closed shards, train first. Each is read back, so that a manifest never lists a shard that lost a key."""
        return [self._entry(file) for file in sorted(self._keys, key=_split_order)]

    def _entry(self, file: str) -> ShardEntry:
        path, keys = self._folder / file, self._keys[file]
        lost = sorted(set(keys) ^ {sample.key for sample in read_shard(path)})
        if lost:
            raise DataError(f"a shard cannot carry the key '{lost[0]}': rename that image")
        return ShardEntry(file=file, split=_split_of_file(file), n_samples=len(keys), sha256=sha256_of(path))


def _split_of_file(file: str) -> Split:
    return next(split for split in SPLITS if file.startswith(f"{split}-"))


def _split_order(file: str) -> tuple[int, str]:
    return SPLITS.index(_split_of_file(file)), file
