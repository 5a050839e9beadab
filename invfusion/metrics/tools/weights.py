"""Where pretrained weights of metrics are looked for: one explicit folder, never a download."""

import hashlib
from pathlib import Path

from invfusion.errors import WeightsUnavailableError


def weights_file(folder: Path, name: str, sha256_prefix: str = "") -> Path:
    """The path of a weight file.

    Raises:
        WeightsUnavailableError: it is not there, or its sha256 does not begin with `sha256_prefix`.
    """
    path = folder / name
    if not path.is_file():
        raise WeightsUnavailableError(f"no file {path}")
    if sha256_prefix and not _sha256(path).startswith(sha256_prefix):
        raise WeightsUnavailableError(f"{path} is corrupt: its sha256 does not begin with {sha256_prefix}")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
