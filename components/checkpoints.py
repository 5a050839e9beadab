"""What a checkpoint folder holds, by its content."""

import hashlib
from pathlib import Path

from invfusion.errors import CheckpointError


def file_digests(folder: Path) -> dict[str, str]:
    """{file: sha256} of the weights and the architecture; where and when they were made does not count.

    Raises:
        CheckpointError: a file is missing.
    """
    files = [folder / "config.json", folder / "model.safetensors", *folder.glob("prior.safetensors")]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: train the model first")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
