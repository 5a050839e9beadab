"""The identity of code: what some code has made and kept is not taken for the work of another."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import invfusion

_LIBRARY = Path(invfusion.__path__[0])


@cache
def code_digest(parts: Sequence[str], others: Sequence[Path] = ()) -> str:
    """SHA-256 of parts of the library, files and folders below invfusion/, and of other files."""
    digest = hashlib.sha256()
    named = [(path.relative_to(_LIBRARY).as_posix(), path) for path in sorted(_files(parts))]
    for name, path in [*named, *((path.name, path) for path in others)]:
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _files(parts: Iterable[str]) -> Iterable[Path]:
    for part in parts:
        path = _LIBRARY / part
        yield from path.rglob("*.py") if path.is_dir() else [path]
