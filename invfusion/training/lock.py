"""One trainer per state folder."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from invfusion.errors import CheckpointError


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the operating system frees it the moment the process dies, however it dies.

    Raises:
        CheckpointError: another live process holds it; the message names its process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise CheckpointError(
                f"{folder} is in use by process {holder}, which trains there; wait for it, or end it first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
