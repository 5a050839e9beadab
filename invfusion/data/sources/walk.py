"""Every file below a folder, through links, each real folder once."""

import os
from pathlib import Path

from invfusion.data.sources.files import Entry


def files_below(root: Path) -> list[Entry]:
    """All entries below `root` that are no folders, by relative path; those that cannot be read say why.

    Links to folders are followed after all real folders, so that what is reached both ways keeps its real path.
    """
    found: list[Entry] = []
    seen: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        name = folders.pop() if folders else links.pop(0)
        try:
            fault = _fault_of_folder(root, name, seen)
            if not fault:
                with os.scandir(root / name) as entries:
                    for entry in sorted(entries, key=lambda entry: entry.name):
                        _sort(entry, f"{name}/{entry.name}" if name else entry.name, found, folders, links)
        except OSError as error:
            fault = f"a folder that cannot be opened ({error.strerror})"
        if fault:
            found.append(Entry(name or ".", fault))
    return found


def _fault_of_folder(root: Path, name: str, seen: set[tuple[int, int]]) -> str:
    status = (root / name).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return "a link to a folder that is read already"
    if name and root.resolve().is_relative_to((root / name).resolve()):
        return "a link to a folder that holds this one"
    seen.add(identity)
    return ""


def _sort(entry: os.DirEntry[str], name: str, found: list[Entry], folders: list[str], links: list[str]) -> None:
    try:
        if entry.is_dir() and not entry.is_symlink():
            folders.append(name)
        elif entry.is_dir():
            links.append(name)
        elif entry.is_file():
            found.append(Entry(name))
        else:
            found.append(Entry(name, "a dangling link" if entry.is_symlink() else "no regular file"))
    except OSError as error:  # a link to itself
        found.append(Entry(name, f"a link that cannot be followed ({error.strerror})"))
