"""Training state on disk: atomic, checksummed, never pickled. A damaged checkpoint is skipped, and the reason logged.

A checkpoint is a folder `checkpoint-<nimg>` of tensors.safetensors, state.json and manifest.json (SHA-256 of both files).
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from invfusion.errors import CheckpointError

log = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
KEPT = 2


def save(folder: Path, nimg: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write `checkpoint-<nimg>` under `folder`; it appears whole or not at all, and older ones stay until it does.

    Raises:
        CheckpointError: it cannot be written (a full disk, say); the previous checkpoint is intact.
    """
    target = folder / f"checkpoint-{nimg:012d}"
    partial = folder / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial / TENSORS)
        (partial / STATE).write_text(json.dumps(state))
        digests = {name: _sha256(partial / name) for name in (TENSORS, STATE)}
        (partial / MANIFEST).write_text(json.dumps(digests))
        for file in partial.iterdir():
            _flush(file)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{target}: cannot save the checkpoint ({error}); free some space and run the same command again: "
            "it continues from the previous checkpoint, which is intact"
        ) from error
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and state of the newest sound checkpoint, or None."""
    for candidate in reversed(_all(folder)):
        try:
            return _load(candidate)
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("%s is damaged (%s); trying the one before", candidate, error)
    return None


def _load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    for name, digest in json.loads((folder / MANIFEST).read_text()).items():
        if _sha256(folder / name) != digest:
            raise ValueError(f"{name} does not match its checksum")
    return load_file(folder / TENSORS), json.loads((folder / STATE).read_text())


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove every checkpoint of a folder: they belong to another task."""
    for old in _all(folder):
        shutil.rmtree(old)
