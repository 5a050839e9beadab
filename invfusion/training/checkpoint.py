"""Training state on disk: atomic, checksummed, never pickled.

A checkpoint is a folder `checkpoint-<nimg>` of tensors.safetensors, state.json and manifest.json (SHA-256 of both).
`state.json` carries the fingerprint of the run that wrote it.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from invfusion.errors import CheckpointError
from invfusion.files import flush, sha256_of

log = logging.getLogger(__name__)

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
ASIDE = "set-aside"
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
        _write(partial, tensors, state)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{target}: cannot save the checkpoint ({error}); free some space and run the same command again: "
            "it continues from the previous checkpoint, which is intact"
        ) from error
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of any shape whose names begin with `prefix`, without it."""
    # Fresh memory: tensors mapped from a file may be unaligned, which changes the last bits of matrix products.
    return {name.removeprefix(prefix): t.clone() for name, t in tensors.items() if name.startswith(prefix)}


def moments_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments, as `<parameter index>/<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": tensor for i, moments in state.items() for name, tensor in moments.items()}


def restore_moments(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take back what `moments_of` gave, of any shape."""
    moments: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        index, _, name = path.partition("/")
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def prepare(folder: Path, fingerprint: str, most: int, companions: Sequence[str] = ()) -> None:
    """Leave in `folder` sound checkpoints of one run alone, none beyond image count `most`.

    Damaged ones are removed, and the reason logged. The state of another run is set aside together with its
    `companions` (files beside the checkpoints), where a later return to its parameters finds it; what had been set
    aside before is then dropped. Call it in one process only.
    """
    shutil.rmtree(folder / f".{ASIDE}", ignore_errors=True)
    state = _newest_state(folder)
    if state is None or _belongs(state, fingerprint, most):
        return
    log.info("%s holds the state of other parameters or data: it is set aside in %s", folder, folder / ASIDE)
    _swap(folder, companions)
    state = _newest_state(folder)
    if state is None or not _belongs(state, fingerprint, most):
        _move(folder, folder / f".{ASIDE}", companions)
        shutil.rmtree(folder / f".{ASIDE}")


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the newest checkpoint, or None. `prepare` must have looked after the folder before."""
    checkpoints = _all(folder)
    if not checkpoints:
        return None
    return load_file(checkpoints[-1] / TENSORS), _read_json(checkpoints[-1] / STATE)


def _newest_state(folder: Path) -> dict[str, Any] | None:
    """The state of the newest sound checkpoint; damaged newer ones are removed."""
    for candidate in reversed(_all(folder)):
        try:
            return _verified_state(candidate)
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s): removed; the one before it is used", candidate, error)
            shutil.rmtree(candidate, ignore_errors=True)
    return None


def _verified_state(checkpoint: Path) -> dict[str, Any]:
    digests = _read_json(checkpoint / MANIFEST)
    for name in (TENSORS, STATE):
        if sha256_of(checkpoint / name) != digests.get(name):
            raise ValueError(f"{name} does not match its checksum")
    return _read_json(checkpoint / STATE)


def _belongs(state: dict[str, Any], fingerprint: str, most: int) -> bool:
    return bool(state["fingerprint"] == fingerprint and state["nimg"] <= most)


def _swap(folder: Path, companions: Sequence[str]) -> None:
    """Exchange the live state with the one that is set aside."""
    between = folder / f".{ASIDE}"
    _move(folder, between, companions)
    _move(folder / ASIDE, folder, companions)
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    between.rename(folder / ASIDE)


def _move(source: Path, target: Path, companions: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in [*_all(source), *(source / name for name in companions)]:
        if path.exists():
            path.rename(target / path.name)


def _write(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(state))
    (folder / MANIFEST).write_text(json.dumps({name: sha256_of(folder / name) for name in (TENSORS, STATE)}))
    for file in folder.iterdir():
        flush(file)
    flush(folder)


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))
