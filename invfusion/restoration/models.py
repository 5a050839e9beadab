"""Models by name: the shipped one, a checkpoint folder, or a registry's address."""

import hashlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import CheckpointError, ConfigError
from invfusion.models import load_denoiser
from invfusion.models.checkpoint import WEIGHTS
from invfusion.restoration.photos import PHOTOS_FILE, Photos, load_photos
from invfusion.restoration.refinement import FILE as NETWORK_FILE

# Packages that know other addresses ("models:/...") name, under the scheme, a function from address to folder.
LOADERS = "invfusion.model_addresses"
PHOTOS = "photos"


def load_model(name: str | Path, device: str = "cpu") -> DenoiserLike:
    """The denoiser of a name: "photos", the path of a checkpoint folder, or an address such as "models:/name@alias".

    Raises `CheckpointError` where there is none, `ConfigError` where the device is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"the device '{device}' is not available here; name another one, such as cpu") from None
    return load_photos() if str(name) == PHOTOS else load_denoiser(model_folder(name), device)


def model_folder(name: str | Path) -> Path:
    """The checkpoint folder of a path or an address. Raises `CheckpointError`."""
    scheme, colon, _ = str(name).partition(":/")
    if not colon or Path(name).is_dir():
        return Path(name)
    for entry in entry_points(group=LOADERS, name=scheme):
        return Path(entry.load()(str(name)))
    raise CheckpointError(
        f"{name}: nothing installed here knows addresses of '{scheme}:'; give the path of a checkpoint folder, or for "
        "addresses of MLflow pip install -e '.[pipeline]' in invfusion's repository"
    )


def describe_model(name: str | Path, denoiser: Any) -> dict[str, str]:
    """What identifies a model, for the record: its name and the SHA-256 of its files."""
    files = [PHOTOS_FILE, NETWORK_FILE] if isinstance(denoiser, Photos) else [model_folder(name) / WEIGHTS]
    return {"name": str(name), "sha256": hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()}
