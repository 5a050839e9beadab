"""Denoisers on disk: a folder of model.safetensors, config.json and manifest.json, and prior.safetensors where the
preconditioning is a Gaussian prior. Nothing is ever unpickled.

A folder appears whole or not at all: it is written beside its place, flushed to the disk, and then renamed. Between
two renames the previous one lies at `.<name>.previous`, where loading finds it.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from invfusion.errors import CheckpointError, ConfigError
from invfusion.files import flush, previous, replace_folder
from invfusion.gaussian import GaussianPrior
from invfusion.models.config import DenoiserConfig
from invfusion.models.denoiser import Denoiser

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
PRIOR = "prior.safetensors"
SHOWN_KEYS = 3


def save_denoiser(denoiser: Denoiser, folder: Path | str, manifest: Mapping[str, Any]) -> None:
    """Write a checkpoint folder atomically.

    manifest: JSON-able facts (git revision, hashes, package versions, ...).
    Raises `CheckpointError` where it cannot be written; what lay there before is then still intact.
    """
    folder = Path(folder)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        _write_files(denoiser, temporary, manifest)
        temporary.chmod(0o755)  # mkdtemp's folders are private
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: cannot save the checkpoint ({error}); free some space or choose another folder. "
            "The previous checkpoint, if there was one, is intact"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


# Weights made in inference mode could not take part in the gradients that some samplers need.
@torch.inference_mode(False)
def load_denoiser(folder: Path | str, device: torch.device | str = "cpu") -> Denoiser:
    """The denoiser of a checkpoint folder, in eval mode.

    Raises `CheckpointError`: a file is missing or corrupt, or the weights are of another architecture.
    """
    folder = _existing(Path(folder))
    config = load_config(folder)
    prior = _read_prior(folder / PRIOR, config)
    with torch.device("meta"):
        denoiser = Denoiser(config, prior=None if prior is None else prior.to(device))
    load_weights(denoiser, _read_weights(folder / WEIGHTS, device), source=str(folder / WEIGHTS))
    return denoiser.eval()


def load_config(folder: Path | str) -> DenoiserConfig:
    """The architecture of a checkpoint. Raises `CheckpointError`."""
    path = _existing(Path(folder)) / CONFIG
    try:
        return DenoiserConfig.model_validate_json(_read_text(path))
    except (ValidationError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: not a denoiser's description ({error}); restore the file or train anew"
        ) from error


def load_manifest(folder: Path | str) -> dict[str, Any]:
    """The facts that were saved with a checkpoint. Raises `CheckpointError`."""
    path = _existing(Path(folder)) / MANIFEST
    try:
        return dict(json.loads(_read_text(path)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a manifest ({error}); restore the file or train anew") from error


def load_weights(denoiser: Denoiser, tensors: Mapping[str, Tensor], source: str) -> None:
    """Replace the denoiser's tensors by the given ones; `source` names them in errors.

    Raises `CheckpointError` naming the first keys that differ where they are of another architecture.
    """
    own = {name: tuple(t.shape) for name, t in denoiser.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if own != given:
        raise CheckpointError(
            f"{source}: the weights are of another architecture ({differences(own, given)}); "
            "load the config.json that was saved with them, or train anew"
        )
    # Fresh memory: tensors mapped from a file may be unaligned, which changes the last bits of matrix products.
    denoiser.load_state_dict({name: t.clone() for name, t in tensors.items()}, assign=True)


def differences(own: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> str:
    wrong = [name for name in own | given if own.get(name) != given.get(name)]
    shown = [f"{n}: {given.get(n, 'missing')} where the model has {own.get(n, 'nothing')}" for n in wrong[:SHOWN_KEYS]]
    rest = len(wrong) - len(shown)
    return "; ".join(shown) + (f"; and {rest} more" if rest else "")


def _write_files(denoiser: Denoiser, folder: Path, manifest: Mapping[str, Any]) -> None:
    tensors = {name: t.detach().cpu().contiguous() for name, t in denoiser.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    if denoiser.prior is not None:
        denoiser.prior.save(folder / PRIOR)
    (folder / CONFIG).write_text(denoiser.config.model_dump_json(indent=2) + "\n")
    (folder / MANIFEST).write_text(json.dumps(dict(manifest), indent=2, sort_keys=True) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
        flush(path)
    flush(folder)


def _existing(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    if previous(folder).is_dir():
        return previous(folder)
    raise CheckpointError(f"{folder}: no such checkpoint folder; train the model first, or correct the path")


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); the checkpoint is incomplete, train anew") from error


def _read_prior(path: Path, config: DenoiserConfig) -> GaussianPrior | None:
    if config.preconditioning == "edm":
        return None
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the model's preconditioning is its Gaussian prior; restore the file or train anew"
        )
    prior = GaussianPrior.load(path)
    try:
        prior.check_fits(config.image_shape)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return prior


def _read_weights(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore the file or train anew") from error
