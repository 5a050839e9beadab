"""One trainer per state folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from invfusion import locks
from invfusion.errors import CheckpointError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        CheckpointError: another live process holds it; the message names its process id.
    """
    path = folder / "lock"
    with locks.locked(path, wait=False) as is_ours:
        if not is_ours:
            raise CheckpointError(
                f"{folder} is in use by process {locks.holder(path)}, which trains there; wait for it, or end it first"
            )
        yield
