"""Files of datasets, which appear whole or not at all; a disk that refuses them is a `DataError`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invfusion import files
from invfusion.errors import DataError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends well, and vanishes otherwise.

    Raises:
        DataError: the disk refused (full, read-only).
    """
    try:
        with files.replacing(path) as partial:
            yield partial
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as partial:
        partial.write_text(text)
