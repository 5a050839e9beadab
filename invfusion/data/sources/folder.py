"""A folder of image files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from invfusion.data.sources.base import NOT_STATED, Listing, SourceImage
from invfusion.data.sources.files import FileEntry, arrange
from invfusion.errors import DataError
from invfusion.schema import Config


class FolderConfig(Config):
    """Every file under `path`, however deep, save hidden ones. With `labels`, first-level folders are classes."""

    kind: Literal["folder"] = "folder"
    path: Path
    labels: bool = False
    licence: str = NOT_STATED

    def open(self) -> Listing:
        """Raises `DataError` where the folder is missing or empty."""
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder: name the folder that holds the images")
        paths = (file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())
        entries, class_names = arrange(paths, self.labels, str(self.path))
        return Listing(
            description=f"folder {self.path.resolve().name}",
            licence=self.licence,
            images=self._read(entries),
            n_images=len(entries),
            class_names=class_names,
        )

    def _read(self, entries: list[FileEntry]) -> Iterator[SourceImage]:
        for entry in entries:
            path = self.path / entry.path
            yield SourceImage(entry.key, str(path), _content(path), entry.label, entry.split)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
