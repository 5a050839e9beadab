"""How far a long step is, as files under state/progress that anyone may watch: an orchestrator, or a person.

Each step has `<name>.json` with {done, total, unit, per_second, eta_s, at} and its own numbers, and where it draws
pictures the newest as `<name>.png`.
"""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from invfusion.files import replacing, write_text

log = logging.getLogger(__name__)

FOLDER = Path("state/progress")


class Progress:
    """Tells of one step. Nothing here stops the work: what cannot be written is left out."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._last: tuple[float, int] | None = None

    def begin(self, done: int) -> None:
        """The step begins, or goes on, here; pictures of an earlier one are gone."""
        self._last = (time.monotonic(), done)
        with contextlib.suppress(OSError):
            self._path("png").unlink()
        self._write(done, 0.0, {})

    def advance(self, done: int, **numbers: float) -> None:
        """So much is done; the speed is that since the last call."""
        now = time.monotonic()
        before, was = self._last or (now, done)
        self._last = (now, done)
        self._write(done, (done - was) / max(now - before, 1e-9), numbers)

    def show(self, pixels: np.ndarray) -> None:
        """A picture (H, W, 3) uint8."""
        from PIL import Image

        try:
            with replacing(self._path("png")) as fresh:
                Image.fromarray(pixels).save(fresh, "PNG")
        except OSError as error:
            log.warning("the picture of %s was not written: %s", self._name, error)

    def _write(self, done: int, per_second: float, numbers: dict[str, float]) -> None:
        eta = (self._total - done) / per_second if per_second > 0 else None
        content: dict[str, Any] = {"done": done, "total": self._total, "unit": self._unit, "at": time.time()}
        content |= {"per_second": round(per_second, 2), "eta_s": None if eta is None else round(eta), **numbers}
        try:
            write_text(self._path("json"), json.dumps(content))
        except OSError as error:
            log.warning("the progress of %s was not written: %s", self._name, error)

    def _path(self, suffix: str) -> Path:
        return FOLDER / f"{self._name}.{suffix}"
