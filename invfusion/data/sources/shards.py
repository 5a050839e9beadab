"""WebDataset shards that exist already, of any resolution and any maker."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from invfusion.data.manifest import MANIFEST, Split, read_manifest
from invfusion.data.names import SPLIT_NAMES, is_hidden, key_of, parts_of, readable, split_of_name
from invfusion.data.shards import Sample, read_records
from invfusion.data.sources.base import NOT_STATED, Listing, Skipped, SourceImage
from invfusion.data.sources.files import Entry
from invfusion.data.sources.layout import check_names
from invfusion.data.sources.walk import files_below
from invfusion.errors import DataError
from invfusion.schema import Config

REMEDY = "make one tar of each split (train.tar, val.tar, test.tar), or unpack it and use --source folder"
TAR = re.compile(r"\.(tar(\.[a-z0-9]+)?|tgz|tbz2?|txz)$", re.IGNORECASE)


class Shards(Config):
    """One tar, or every tar under a folder, compressed or not. Names that begin with train, val or test give the split,
    or folders of these names, around the tars or first within them.
    """

    kind: Literal["shards"] = "shards"
    path: Path
    licence: str = NOT_STATED

    def open(self) -> Listing:
        """Raises `DataError` where there is no tar, or only some tell their split."""
        source = readable(str(self.path))
        is_file = self.path.is_file()
        entries = [Entry(self.path.name)] if is_file else files_below(self.path) if self.path.is_dir() else []
        tars, skipped = _divide(entries, source, is_file)
        if not tars:
            raise DataError(f"{source} holds no .tar files: name a tar or a folder of them")
        manifest = read_manifest(self.path) if (self.path / MANIFEST).is_file() else None
        splits = {name: _split_of(name, source) for name in tars}
        if any(splits.values()) and not all(splits.values()):
            odd = next(name for name, split in splits.items() if split is None)
            raise DataError(f"{source}: some shards are named by split and {odd} is not; name all or none so")
        warnings = () if any(splits.values()) or manifest else check_names([*tars, *_folders(tars)], source, REMEDY)
        return Listing(
            description=f"WebDataset shards {readable(self.path.resolve().name)}",
            licence=manifest.licence if manifest and self.licence == NOT_STATED else self.licence,
            images=self._read(splits, skipped),
            n_images=sum(manifest.n_samples.values()) if manifest else None,
            class_names=tuple(manifest.class_names) if manifest else (),
            warnings=warnings,
        )

    def _read(self, splits: dict[str, Split | None], skipped: list[Skipped]) -> Iterator[SourceImage | Skipped]:
        yield from skipped
        folder = self.path.parent if self.path.is_file() else self.path
        divided: bool | None = None
        for name, split in splits.items():
            path = folder / name
            for record in read_records(path):
                if not isinstance(record, Sample):
                    yield Skipped(record.reason, record.problem, record.n_files)
                    continue
                origin = f"{readable(str(path))}: key '{record.key}'"
                own = split or _split_of_key(record.key, origin)
                if divided not in (None, own is not None):
                    raise DataError(f"{origin}: some keys lie in a split folder and some do not; {REMEDY}")
                divided = own is not None
                n_files = 1 if record.label is None else 2
                yield SourceImage(_key(record.key), origin, record.image, record.label, own, n_files)


def _divide(entries: list[Entry], source: str, is_file: bool) -> tuple[list[str], list[Skipped]]:
    """The tars by name, and everything else."""
    tars, skipped = [], []
    for entry in entries:
        if is_file or (TAR.search(entry.name) and not entry.fault and not is_hidden(parts_of(entry.name))):
            tars.append(entry.name)
        elif is_hidden(parts_of(entry.name)):
            skipped.append(Skipped("hidden"))
        elif entry.fault:
            skipped.append(Skipped(entry.fault, f"{source}: '{readable(entry.name)}' cannot be read: {entry.fault}"))
        else:
            skipped.append(Skipped("no tar"))
    return sorted(tars, key=lambda name: name.split("/")), skipped


def _folders(names: list[str]) -> set[str]:
    return {folder for name in names for folder in name.split("/")[:-1]}


def _split_of(name: str, source: str) -> Split | None:
    """By the file's first word, or else by the folders above it."""
    *folders, file = parts_of(name)
    word = re.match("[a-z]*", file.casefold())
    own = SPLIT_NAMES.get(word[0]) if word else None
    above = {split for folder in folders if (split := split_of_name(folder))}
    if len(above | ({own} if own else set())) > 1:
        raise DataError(f"{source}: {readable(name)} is named by several splits; name the tar and its folder alike")
    return own or next(iter(above), None)


def _split_of_key(key: str, origin: str) -> Split | None:
    """In a tar of an image folder, its first folders may be splits."""
    folders = parts_of(key)[:-1]
    split = split_of_name(folders[0]) if folders else None
    if split is None and any(map(split_of_name, folders)):
        raise DataError(f"{origin} lies in a folder that looks like a split and is not the first; {REMEDY}")
    return split


def _key(key: str) -> str:
    """Safe to be written again."""
    *folders, stem = parts_of(key)
    return key_of((*folders, f"{stem}.png"))
