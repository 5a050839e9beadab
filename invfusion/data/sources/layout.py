"""Which folders of a source are splits and which are classes; a layout that could be taken for another is refused."""

from collections.abc import Iterable
from dataclasses import dataclass

from invfusion.data.manifest import Split
from invfusion.data.names import split_of_name, split_words
from invfusion.errors import DataError

Parts = tuple[str, ...]
REMEDY = (
    "put all images into folders train/, val/ and test/ at the top and name the folder (or zip it) that holds just "
    "these, or rename them if they are no splits"
)


@dataclass(frozen=True)
class Layout:
    """How many folders lie above the split folders and above the class folders; None where there are none."""

    split_depth: int | None = None
    class_depth: int | None = None
    warnings: tuple[str, ...] = ()

    def split(self, folders: Parts) -> Split | None:
        """The split of a file in these folders."""
        depth = self.split_depth
        return split_of_name(folders[depth]) if depth is not None and len(folders) > depth else None

    def class_name(self, folders: Parts) -> str | None:
        """The class of a file in these folders."""
        depth = self.class_depth
        return folders[depth] if depth is not None and len(folders) > depth else None

    def stray(self, folders: Parts) -> tuple[str, str] | None:
        """Why a file in these folders has no place among the others, and the remedy."""
        if self.split_depth is not None and self.split(folders) is None:
            return "outside the split folders", "put all images into train/, val/ and test/, or none"
        if self.class_depth is not None and self.class_name(folders) is None:
            return "in no class folder", "leave --labels out, or move it into one"
        return None


def find_layout(files: Iterable[Parts], with_classes: bool, source: str) -> Layout:
    """The layout of files, given the folders that each lies in.

    Split folders lie at the top, or below folders that hold everything. Class folders come next; folders that hold
    everything are no classes.

    Raises:
        DataError: folders that look like splits lie elsewhere, or all images would be of one class.
    """
    folders = set(files)
    depth = _split_depth(folders)
    warnings = _check_elsewhere(folders, source) if depth is None else _check_below(folders, depth, source)
    if not with_classes:
        return Layout(depth, None, warnings)
    above = 0 if depth is None else depth + 1
    inside = {parts for parts in folders if depth is None or Layout(depth).split(parts)}
    class_depth = _class_depth(inside, above, source)
    if class_depth > above:
        holders = "/".join(min(parts for parts in inside if len(parts) > class_depth)[:class_depth])
        warnings += (f"{source}: the classes are the folders below '{holders}', which holds everything",)
    return Layout(depth, class_depth, warnings)


def _at(folders: Iterable[Parts], depth: int) -> set[str]:
    return {parts[depth] for parts in folders if len(parts) > depth}


def _split_depth(folders: set[Parts]) -> int | None:
    depth = 0
    while names := _at(folders, depth):
        if any(map(split_of_name, names)):
            return depth
        if len(names) > 1:
            return None
        depth += 1
    return None


def _class_depth(folders: set[Parts], above: int, source: str) -> int:
    depth = above
    while len(names := _at(folders, depth)) == 1:
        depth += 1
    if not names:
        only = max(folders, key=len, default=())[above:]
        found = (
            f"all images would be of one class ('{'/'.join(only)}')" if only else "the images lie in no class folder"
        )
        raise DataError(f"{source}: {found}; leave --labels out, or name the folder that holds the class folders")
    return depth


def _check_below(folders: set[Parts], depth: int, source: str) -> tuple[str, ...]:
    """Split folders within split folders: a folder of several may itself be named like one."""
    inner = _at(folders, depth + 1)
    outer = {split_of_name(name) for name in _at(folders, depth)}
    if len(outer) == 1 and inner and all(map(split_of_name, inner)) and {split_of_name(n) for n in inner} != outer:
        raise DataError(
            f"{source}: the split folders {_listed(inner)} lie below '{_listed(_at(folders, depth))}', "
            f"which is named as a split too; name the folder (or zip it) that holds just these"
        )
    return ()


def _check_elsewhere(folders: set[Parts], source: str) -> tuple[str, ...]:
    """Folders named or nearly named as splits, where no rule looks for splits."""
    places = {"/".join(parts[: i + 1]): part for parts in folders for i, part in enumerate(parts)}
    exact = {split: place for place, part in sorted(places.items()) if (split := split_of_name(part))}
    if len(exact) > 1 or set(exact) - {"train"}:
        raise DataError(
            f"{source}: '{min(exact.values())}' looks like a split and lies where none is expected; {REMEDY}"
        )
    return check_names(places.values(), source)


def check_names(names: Iterable[str], source: str, remedy: str = REMEDY) -> tuple[str, ...]:
    """Warnings about names that speak of a split without being one, and would be divided at random.

    Raises:
        DataError: several differ by nothing but the split (train2017, val2017).
    """
    kinds: dict[str, dict[Split, str]] = {}
    for name in sorted(set(names)):
        for split, rest in split_words(name).items():
            kinds.setdefault(rest, {}).setdefault(split, name)
    for found in kinds.values():
        if len(found) > 1:
            raise DataError(f"{source}: {_listed(found.values())} look like splits and are not named so; {remedy}")
    named = _listed(name for found in kinds.values() for name in found.values())
    return (f"{source}: {named} would be divided at random; {remedy}",) if kinds else ()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
