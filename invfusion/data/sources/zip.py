"""A zip of image files, read without unpacking."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from invfusion.data.shards import MAX_FILE_BYTES
from invfusion.data.sources.base import NOT_STATED, Listing, SourceImage
from invfusion.data.sources.files import FileEntry, arrange
from invfusion.errors import DataError
from invfusion.schema import Config


class ZipConfig(Config):
    """Every file in the zip `path`, by the same rules as a folder."""

    kind: Literal["zip"] = "zip"
    path: Path
    labels: bool = False
    licence: str = NOT_STATED

    def open(self) -> Listing:
        """Raises `DataError` where the zip is missing, damaged or empty."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                paths = [info.filename for info in archive.infolist() if not info.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} is not a zip that can be read: {error}") from error
        entries, class_names = arrange(paths, self.labels, str(self.path))
        return Listing(
            description=f"zip {self.path.name}",
            licence=self.licence,
            images=self._read(entries),
            n_images=len(entries),
            class_names=class_names,
        )

    def _read(self, entries: list[FileEntry]) -> Iterator[SourceImage]:
        with zipfile.ZipFile(self.path) as archive:
            for entry in entries:
                content = self._content(archive, entry.path)
                yield SourceImage(entry.key, f"{self.path}: {entry.path}", content, entry.label, entry.split)

    def _content(self, archive: zipfile.ZipFile, path: str) -> bytes:
        """The file's bytes; nothing where its checksum is wrong or it is far too large, so that it counts as any other
        non-image does.
        """
        try:
            return archive.read(path) if archive.getinfo(path).file_size <= MAX_FILE_BYTES else b""
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
            return b""
