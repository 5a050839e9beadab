"""Keys, labels and splits from the relative paths of image files; shared by folders and zips."""

from collections.abc import Sequence
from dataclasses import dataclass

from invfusion.data.manifest import Split
from invfusion.data.names import is_hidden, key_of, leaves_its_folder, parts_of, readable
from invfusion.data.sources.base import Skipped
from invfusion.data.sources.layout import Parts, find_layout
from invfusion.errors import DataError


@dataclass(frozen=True)
class Entry:
    """One file of a source under its name there; `fault` says why it cannot be read, where that is known beforehand."""

    name: str
    fault: str = ""


@dataclass(frozen=True)
class FileEntry:
    """One file to be read: its position among the source's entries, its key, and what its folders say about it."""

    position: int
    key: str
    label: int | None = None
    split: Split | None = None


@dataclass(frozen=True)
class Arrangement:
    """The files to be read, sorted by path; all other entries; the class names in the order of their labels."""

    files: list[FileEntry]
    skipped: list[Skipped]
    class_names: tuple[str, ...]
    warnings: tuple[str, ...]


def arrange(entries: Sequence[Entry], labels_from_folders: bool, source: str) -> Arrangement:
    """Sort a source's entries into those to be read and those that cannot be.

    Folders train, val and test give the split; with `labels_from_folders` the next folders give the class.

    Raises:
        DataError: no file, or a layout in which splits or classes lie elsewhere.
    """
    paths, skipped = _usable(entries, source)
    if not paths:
        raise DataError(
            f"{source} holds no files that could be images{_first(skipped)}: name a folder or zip of images"
        )
    layout = find_layout((parts[:-1] for parts in paths.values()), labels_from_folders, source)
    placed = {}
    for position, parts in sorted(paths.items(), key=lambda item: "/".join(item[1])):
        if stray := layout.stray(parts[:-1]):
            reason, remedy = stray
            skipped.append(Skipped(reason, f"{source}: '{'/'.join(parts)}' lies {reason}; {remedy}"))
        else:
            placed[position] = parts
    classes = {position: layout.class_name(parts[:-1]) for position, parts in placed.items()}
    class_names = tuple(sorted({name for name in classes.values() if name is not None}))
    labels: dict[str | None, int] = {name: number for number, name in enumerate(class_names)}
    files = [
        FileEntry(position, key_of(parts), labels.get(classes[position]), layout.split(parts[:-1]))
        for position, parts in placed.items()
    ]
    return Arrangement(files, skipped, class_names, layout.warnings)


def _usable(entries: Sequence[Entry], source: str) -> tuple[dict[int, Parts], list[Skipped]]:
    """The parts of the names that can be read, by position; and all others."""
    paths: dict[int, Parts] = {}
    skipped = []
    for position, entry in enumerate(entries):
        parts = parts_of(entry.name)
        fault = entry.fault or _fault_of_name(entry.name, parts)
        if is_hidden(parts) and not leaves_its_folder(entry.name):
            skipped.append(Skipped("hidden"))
        elif fault:
            skipped.append(Skipped(fault, f"{source}: '{readable(entry.name)}' cannot be read: {fault}"))
        else:
            paths[position] = parts
    return paths, skipped


def _fault_of_name(name: str, parts: Parts) -> str:
    if leaves_its_folder(name):
        return "its name points out of its folder"
    return "" if parts else "it has no name"


def _first(skipped: list[Skipped]) -> str:
    problems = [entry.problem for entry in skipped if entry.problem]
    return f" ({problems[0]})" if problems else ""
