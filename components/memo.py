"""Results on disk, found again by what they were made from.

An entry is one file, named after a hash of the facts that its content depends on: inputs, settings, code. It is written
atomically, and while it is made it belongs to the process that holds its lock, so several can share the work.
"""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from invfusion.errors import DataError
from invfusion.files import replacing, write_text
from invfusion.locks import locked

# Entries so new are spared where nobody is known to need them: a process that still runs may.
SPARED_S = 86_400

Facts = Mapping[str, Any]
Tensors = dict[str, Tensor]
T = TypeVar("T")


def identity(facts: Facts) -> str:
    """The name of facts that are JSON-able: equal facts, equal name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Memo:
    """The entries of one folder. used: those that were asked for."""

    folder: Path
    used: set[str] = field(default_factory=set)

    def tensors(self, facts: Facts, compute: Callable[[], Tensors], *, wait: bool = True) -> Tensors | None:
        """The tensors for these facts, from disk or computed; None where another process is busy with them and `wait`
        is False."""
        path = self._path(facts, "safetensors")
        return self._entry(path, read_tensors, save_file, compute, wait)

    def has(self, facts: Facts) -> bool:
        """Whether the tensors for these facts are there."""
        return read_tensors(self._path(facts, "safetensors"), ()) is not None

    def stored(self, facts: Facts, names: Collection[str] | None = None) -> Tensors:
        """Tensors for these facts that were computed before: all, or those of these names that there are."""
        found = read_tensors(self._path(facts, "safetensors"), names)
        if found is None:
            raise DataError(f"{self.folder}: an entry vanished while it was in use; run again to make it anew")
        return found

    def data(self, facts: Facts, compute: Callable[[], T]) -> T:
        """What JSON can hold, for these facts: from disk, or computed."""
        path = self._path(facts, "json")
        found: T | None = self._entry(path, _read_json, _write_json, compute, wait=True)
        assert found is not None, "waited for"
        return found

    def forget_unused(self, user: str) -> None:
        """Remember which entries this user needs, and remove old ones that no user needs any more."""
        uses = self.folder / "uses"
        write_text(uses / f"{user}.json", json.dumps(sorted(self.used)))
        needed = {name for path in uses.glob("*.json") for name in json.loads(path.read_text())}
        for path in self.folder.iterdir():
            is_entry = path.suffix in (".safetensors", ".json", ".lock", ".partial")
            if is_entry and path.name.partition(".")[0] not in needed and _is_old(path):
                path.unlink(missing_ok=True)

    def _path(self, facts: Facts, suffix: str) -> Path:
        name = identity(facts)
        self.used.add(name)
        return self.folder / f"{name}.{suffix}"

    def _entry(
        self,
        path: Path,
        read: Callable[[Path], T | None],
        write: Callable[[T, Path], None],
        compute: Callable[[], T],
        wait: bool,
    ) -> T | None:
        if (found := read(path)) is not None:
            return found
        with locked(path.with_suffix(".lock"), wait=wait) as is_ours:
            if not is_ours:
                return None
            if (found := read(path)) is not None:
                return found
            made = compute()
            with replacing(path) as partial:
                write(made, partial)
        return made


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > SPARED_S


def read_tensors(path: Path, names: Collection[str] | None = None) -> Tensors | None:
    """The tensors of a file, or those of the names that it has; None where there is no file, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None


def _write_json(content: Any, path: Path) -> None:
    path.write_text(json.dumps(content))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
