"""A folder of image files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from invfusion.data.images import MAX_FILE_BYTES, TOO_LONG
from invfusion.data.names import readable
from invfusion.data.sources.base import NOT_STATED, Listing, Skipped, SourceImage
from invfusion.data.sources.files import Arrangement, Entry, arrange
from invfusion.data.sources.walk import files_below
from invfusion.errors import DataError
from invfusion.schema import Config


class Folder(Config):
    """Every file under `path`, however deep, save hidden ones. With `labels`, first-level folders are classes."""

    kind: Literal["folder"] = "folder"
    path: Path
    labels: bool = False
    licence: str = NOT_STATED

    def open(self) -> Listing:
        """Raises `DataError` where the folder is missing or empty, or its layout is not the documented one."""
        if not self.path.is_dir():
            raise DataError(f"{self.path} is not a folder: name the folder that holds the images")
        entries = files_below(self.path)
        arranged = arrange(entries, self.labels, readable(str(self.path)))
        return Listing(
            description=f"folder {readable(self.path.resolve().name)}",
            licence=self.licence,
            images=self._read(entries, arranged),
            n_images=len(entries),
            class_names=arranged.class_names,
            warnings=arranged.warnings,
        )

    def _read(self, entries: list[Entry], arranged: Arrangement) -> Iterator[SourceImage | Skipped]:
        yield from arranged.skipped
        for file in arranged.files:
            path = self.path / entries[file.position].name
            origin = readable(str(path))
            try:
                with path.open("rb") as opened:
                    content = opened.read(MAX_FILE_BYTES + 1)
            except OSError as error:
                yield Skipped("cannot be opened", f"{origin} cannot be read: {error.strerror or error}")
                continue
            if len(content) > MAX_FILE_BYTES:
                yield Skipped(TOO_LONG, f"{origin} cannot be read: {TOO_LONG}")
                continue
            yield SourceImage(file.key, origin, content, file.label, file.split)
