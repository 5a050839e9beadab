"""The run's own log: one JSON object per line, cut back on resuming so that it reads like an uninterrupted run's."""

import json
from pathlib import Path
from typing import Any

from invfusion.errors import CheckpointError
from invfusion.files import write_text


class History:
    """The log of one run; every entry has its image count in `nimg`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: dict[str, float]) -> None:
        """Add one line. Raises `CheckpointError` where it cannot be written."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error}); free some space and run the same command again: "
                "it continues from the last checkpoint, which is intact"
            ) from error

    def entries(self) -> list[dict[str, Any]]:
        """All whole lines; what a killed process left behind half-written is ignored."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1] if line.startswith("{") and line.endswith("}")]

    def truncate(self, nimg: int) -> None:
        """Drop what was logged after image count `nimg`."""
        kept = [json.dumps(entry) + "\n" for entry in self.entries() if entry["nimg"] <= nimg]
        write_text(self.path, "".join(kept))
