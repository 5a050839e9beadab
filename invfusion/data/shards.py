"""WebDataset shards: one tar member `<key>.png` and, with labels, one `<key>.cls` per sample."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import webdataset

from invfusion.data.images import MAX_FILE_BYTES
from invfusion.data.manifest import RESTORE, SPLITS, ShardEntry, Split
from invfusion.data.names import is_hidden, leaves_its_folder, parts_of, readable
from invfusion.errors import DataError
from invfusion.files import sha256_of

IMAGE_SUFFIXES = (
    *("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm"),
    *("pgm", "pbm", "pnm", "jp2", "avif", "jpe", "jfif"),
)


@dataclass(frozen=True)
class Sample:
    """One record of a shard: an encoded image and its class (None without a label)."""

    key: str
    image: bytes
    label: int | None


@dataclass(frozen=True)
class Unread:
    """`n_files` members of a tar that give no sample, because of `reason`.

    `problem` says what is wrong and where; it is empty where WebDataset's rules leave such files out.
    """

    reason: str
    problem: str = ""
    n_files: int = 1


@dataclass
class _Record:
    """Consecutive files of one key, by lower-case suffix."""

    key: str
    files: dict[str, bytes] = field(default_factory=dict)


def read_shard(path: Path) -> Iterator[Sample]:
    """All samples of a tar, in its order.

    Raises:
        DataError: the file is missing, cut short or damaged, or a record lacks its image; names the shard and the key,
            or the last key that could be read. Losses that WebDataset's own reading passes over are found too.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: {RESTORE}, or rebuild it")
    for record in read_records(path):
        if isinstance(record, Sample):
            yield record
        elif record.problem:
            raise DataError(f"{record.problem}: {RESTORE}, or rebuild it")


def read_records(path: Path) -> Iterator[Sample | Unread]:
    """Everything in a tar, plain or compressed: each of its files is part of one sample or of one `Unread`.

    Damage ends the reading and is the last `Unread`.
    """
    last = "the beginning"
    try:
        with tarfile.open(path) as archive:
            for record in _records(archive, path):
                yield from _samples(record, path) if isinstance(record, _Record) else [record]
                last = f"key '{record.key}'" if isinstance(record, _Record) else last
    except Exception as error:  # noqa: BLE001 - on damaged headers tarfile and the decompressors raise many things
        problem = f"{readable(str(path))} is damaged or cut short after {last} ({_reason(error)})"
        yield Unread("a damaged tar", problem)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).split(":\n")[0] or type(error).__name__


def _records(archive: tarfile.TarFile, path: Path) -> Iterator[_Record | Unread]:
    record = _Record("")
    while member := archive.next():
        vars(archive)["members"].clear()  # else it keeps all
        if member.isdir():
            continue
        if unread := _why_unread(member, path):
            yield unread
            continue
        key, suffix = _split_name(member.name)
        if key != record.key or suffix in record.files:
            if record.files:
                yield record
            record = _Record(key)
        record.files[suffix] = _content(archive, member)
    if record.files:
        yield record
    _check_end(archive)


def _why_unread(member: tarfile.TarInfo, path: Path) -> Unread | None:
    parts = parts_of(member.name)
    where = f"{readable(str(path))}: '{readable(member.name)}'"
    if leaves_its_folder(member.name):
        return Unread("its name points out of its folder", f"{where} points out of its folder")
    if is_hidden(parts) or re.fullmatch("__.*__", parts[0] if parts else ""):
        return Unread("hidden")
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        return Unread(kind, f"{where} is {kind}")
    if not parts or "." not in parts[-1]:
        return Unread("a name without suffix", f"{where} has no suffix that says what it is")
    return None


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix, divided by the first dot of the file's name."""
    *folders, file = parts_of(name)
    stem, _, suffix = file.partition(".")
    return "/".join([*folders, stem]), suffix.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # A compressed or sparse member of a few bytes can claim any size.
    if member.size > MAX_FILE_BYTES:
        raise ValueError(f"'{readable(member.name)}' claims {member.size} bytes, at most {MAX_FILE_BYTES} are read")
    file = archive.extractfile(member)
    return file.read() if file else b""


def _check_end(archive: tarfile.TarFile) -> None:
    """Find losses that look like a regular end to every tar reader: a cut between records, a destroyed header."""
    file: Any = archive.fileobj
    if archive.offset == 0:
        raise tarfile.ReadError("it holds no records")
    file.seek(archive.offset)
    if len(file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    # To the end, where compressed files have their checksum.
    file.seek(archive.offset)
    if any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b"")):
        raise tarfile.ReadError("a broken header hides the rest")


def _samples(record: _Record, path: Path) -> Iterator[Sample | Unread]:
    """The record's sample, and its other files."""
    files, where = dict(record.files), f"{readable(str(path))}: key '{record.key}'"
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in files), None)
    if suffix is None:
        yield Unread("no image in its record", f"{where} has no image, only {', '.join(sorted(files))}", len(files))
        return
    image, text = files.pop(suffix), files.pop("cls", None)
    label = None if text is None else _class_number(text)
    for other in files:
        is_image = other in IMAGE_SUFFIXES
        yield Unread("beside an image", f"{where} has two images, {suffix} and {other}" if is_image else "")
    if label == -1:
        yield Unread("no class number", f"{where} has class {text!r}, expected a whole number from 0", 2)
        return
    yield Sample(record.key, image, label)


def _class_number(text: bytes) -> int:
    """-1 where it is none."""
    return int(text) if re.fullmatch(rb"\s*\d{1,9}\s*", text) else -1


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
        # Fixed times make equal input give equal bytes; DVC would see a change otherwise. PAX: names of any length.
        self._writers[split] = webdataset.ShardWriter(
            pattern, maxcount=self._shard_images, mtime=0, verbose=0, format="PAX_FORMAT"
        )
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
