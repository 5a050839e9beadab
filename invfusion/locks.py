"""Locks between processes on one host.

The operating system keeps a lock with the process that took it, and frees it the moment that is gone, however it died.
The lock's file stays behind and means nothing by itself; it says who held it last.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

# Whatever the user's umask takes away from new files.
SHARED = 0o666


def lock(path: Path, note: str | None = None, *, inheritable: bool = False) -> FileLock:
    """A lock on the file, not yet held: `acquire(blocking=...)` raises `filelock.Timeout` where another holds it.

    note: who holds it, for `holder`; by default the process id. inheritable: child processes that inherit this one's
    open files (close_fds=False) keep the lock where this one is killed. Whoever may enter the folder may lock the file,
    whichever user made it.
    """

    def taken(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, (note or str(os.getpid())).encode(), 0)
        os.set_inheritable(descriptor, inheritable)
        with suppress(PermissionError):  # another user's file, who did the same
            os.fchmod(descriptor, SHARED)

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, mode=SHARED, thread_local=False, preserve_lock_file=True, on_acquired=taken)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock for the block; False where another process has it and is not waited for."""
    held = lock(path)
    try:
        held.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock together with others that share it; none of them can have it alone meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def holder(path: Path) -> str:
    """The note of who holds the lock, or held it last."""
    return path.read_text().strip() or "unknown"
