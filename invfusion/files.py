"""Files and folders that are either whole or absent: written beside their place, flushed, and renamed into it; and what
identifies a file.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, and vanishes otherwise.

    Raises:
        OSError: the disk refused (full, read-only); what lay at `path` is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def previous(folder: Path) -> Path:
    """Where the former content of a folder lies between the two renames of `replace_folder`."""
    return folder.with_name(f".{folder.name}.previous")


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put a finished folder in the place of another; until then that one lies there, or at `previous`."""
    if folder.exists():
        shutil.rmtree(previous(folder), ignore_errors=True)
        folder.rename(previous(folder))
    fresh.rename(folder)
    flush(folder.parent)
    shutil.rmtree(previous(folder), ignore_errors=True)


def flush(path: Path) -> None:
    """Force a file or folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
