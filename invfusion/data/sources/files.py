"""Keys, labels and splits from the relative paths of image files; shared by folders and zips."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from invfusion.data.manifest import Split
from invfusion.errors import DataError

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class FileEntry:
    """One file of a source: its path there, its key, and what its folders say about it."""

    path: str
    key: str
    label: int | None
    split: Split | None


def arrange(paths: Iterable[str], labels_from_folders: bool, source: str) -> tuple[list[FileEntry], tuple[str, ...]]:
    """Entries sorted by path, and the class names in the order of their labels.

    Top-level folders train, val and test give the split; with `labels_from_folders` the next folder gives the class.

    Raises:
        DataError: no file, some files inside split folders and some outside, or a file without a class folder.
    """
    files = sorted(path for path in paths if not _is_hidden(path))
    if not files:
        raise DataError(f"{source} holds no files: name a folder or zip of images")
    splits = {path: _split_of(path) for path in files}
    _check_splits(splits, source)
    classes = {path: _class_of(path, splits[path], source) for path in files} if labels_from_folders else {}
    class_names = tuple(sorted(set(classes.values())))
    numbers = {name: number for number, name in enumerate(class_names)}
    entries = [FileEntry(path, key_of(path), numbers.get(classes.get(path, "")), splits[path]) for path in files]
    return entries, class_names


def key_of(path: str) -> str:
    """The relative path without its suffix, safe as a name in a tar: WebDataset ends a key at the name's first dot."""
    pure = PurePosixPath(path)
    return str(pure.with_name(re.sub(r"\.", "%2E", pure.stem)))


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def _split_of(path: str) -> Split | None:
    parts = PurePosixPath(path).parts
    return SPLIT_FOLDERS.get(parts[0].lower()) if len(parts) > 1 else None


def _check_splits(splits: dict[str, Split | None], source: str) -> None:
    inside = [path for path, split in splits.items() if split]
    outside = [path for path, split in splits.items() if not split]
    if inside and outside:
        raise DataError(
            f"{source}: '{inside[0]}' lies in a split folder and '{outside[0]}' does not; "
            "put all images into train/, val/ and test/, or none"
        )


def _class_of(path: str, split: Split | None, source: str) -> str:
    folders = PurePosixPath(path).parts[1 if split else 0 : -1]
    if not folders:
        raise DataError(f"{source}: '{path}' lies in no class folder; leave --labels out, or move it into one")
    return folders[0]
