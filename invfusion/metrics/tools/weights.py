"""Where pretrained weights of metrics are looked for: one explicit folder, never a download."""

from pathlib import Path

from invfusion.errors import WeightsUnavailableError
from invfusion.files import sha256_of


def weights_file(folder: Path, name: str, sha256_prefix: str = "") -> Path:
    """The path of a weight file.

    Raises:
        WeightsUnavailableError: it is not there, or its sha256 does not begin with `sha256_prefix`.
    """
    path = folder / name
    if not path.is_file():
        raise WeightsUnavailableError(f"no file {path}")
    if sha256_prefix and not sha256_of(path).startswith(sha256_prefix):
        raise WeightsUnavailableError(f"{path} is corrupt: its sha256 does not begin with {sha256_prefix}")
    return path
