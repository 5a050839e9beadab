"""A zip of image files, read without unpacking."""

import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from invfusion.data.images import MAX_FILE_BYTES, TOO_LONG
from invfusion.data.names import readable
from invfusion.data.sources.base import NOT_STATED, Listing, Skipped, SourceImage
from invfusion.data.sources.files import Arrangement, Entry, arrange
from invfusion.errors import DataError
from invfusion.schema import Config


class Zip(Config):
    """Every file in the zip `path`, by the same rules as a folder."""

    kind: Literal["zip"] = "zip"
    path: Path
    labels: bool = False
    licence: str = NOT_STATED

    def open(self) -> Listing:
        """Raises `DataError` where the zip is missing, damaged or empty, or its layout is not the documented one."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [member for member in archive.infolist() if not _is_folder(member)]
                entries = [Entry(member.filename, _fault(archive, member)) for member in members]
        except Exception as error:  # a damaged directory of members raises many things
            raise DataError(f"{self.path} is not a zip that can be read: {error}") from error
        arranged = arrange(entries, self.labels, readable(str(self.path)))
        return Listing(
            description=f"zip {readable(self.path.name)}",
            licence=self.licence,
            images=self._read(members, arranged),
            n_images=len(members),
            class_names=arranged.class_names,
            warnings=arranged.warnings,
        )

    def _read(self, members: list[zipfile.ZipInfo], arranged: Arrangement) -> Iterator[SourceImage | Skipped]:
        yield from arranged.skipped
        with zipfile.ZipFile(self.path) as archive:
            for file in arranged.files:
                member = members[file.position]
                origin = readable(f"{self.path}: {member.filename}")
                try:
                    content = archive.read(member)
                except Exception as error:  # noqa: BLE001 - so do the decompressors
                    yield Skipped("damaged in the zip", f"{origin} cannot be read: {error}")
                    continue
                yield SourceImage(file.key, origin, content, file.label, file.split)


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.filename.endswith(("/", "\\")) and not member.file_size


def _fault(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    """Why a member cannot be read, as far as that can be said without reading it."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "a link" if kind == stat.S_IFLNK else "no regular file"
    if member.flag_bits & 1:
        return "encrypted"
    if member.file_size > MAX_FILE_BYTES:
        return TOO_LONG
    try:
        archive.open(member).close()
    except NotImplementedError:
        return "compressed in a way that cannot be read here; zip it anew"
    except Exception:  # noqa: BLE001
        return "damaged in the zip"
    return ""
