"""GPUs of this host, lent to one job each.

A lease is a lock that the operating system keeps with the process that took it (and with those that inherited it), so
it is free the moment they are gone, however they died. All working copies on a host share the leases.
"""

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from invfusion.errors import ConfigError

log = logging.getLogger(__name__)

# "0,1,3": the devices that jobs may use. A host without GPUs has slots only where they are declared here.
SLOTS = "INVFUSION_SLOTS"
FOLDER = "INVFUSION_LEASES"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.5


def slots() -> list[str]:
    """The devices to share: those that are declared, else those that CUDA shows; empty where there are none."""
    for name in (SLOTS, VISIBLE):
        if name in os.environ:
            return [part.strip() for part in os.environ[name].split(",") if part.strip()]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i in range(len(re.findall("^GPU ", answer, re.MULTILINE)))]


@contextlib.contextmanager
def hold(count: int, purpose: str) -> Iterator[list[str]]:
    """Wait for `count` devices, then hold them and show CUDA no others; yields their names.

    On a host without devices nothing is held. Who waits is served in turn, so that a job for many devices gets them.

    Raises:
        ConfigError: this host never has so many.
    """
    devices = slots()
    if not devices:
        yield []
        return
    if count > len(devices):
        raise ConfigError(
            f"{purpose} asks for {count} devices and this host has {len(devices)} ({', '.join(devices)}): "
            f"set runtime.processes to at most {len(devices)}, or declare more in {SLOTS}"
        )
    with contextlib.ExitStack() as stack:
        held = _take(devices, count, purpose, stack)
        stack.enter_context(_visible(held))
        log.info("%s runs on device %s", purpose, ", ".join(held))
        yield held


def holders() -> dict[str, str]:
    """Who holds which device: {"0": "train-invfusion (process 123)"}."""
    found = {}
    for device in slots():
        with _open(device) as file:
            if not _try_lock(file):
                found[device] = file.read().strip() or "a job that is just beginning"
    return found


def _take(devices: Sequence[str], count: int, purpose: str, stack: contextlib.ExitStack) -> list[str]:
    with _open("queue") as queue:
        _wait_for_turn(queue, purpose)
        held: dict[str, IO[str]] = {}
        while len(held) < count:
            for device in devices:
                if device not in held and len(held) < count and (file := _lock(device)) is not None:
                    held[device] = stack.enter_context(file)
            if len(held) < count:
                time.sleep(POLL_S)
    for file in held.values():
        file.truncate(0)
        file.write(f"{purpose} (process {os.getpid()})")
        file.flush()
        # Processes that work for this one on the device keep the lease when this one dies.
        os.set_inheritable(file.fileno(), True)
    return [device for device in devices if device in held]


def _wait_for_turn(queue: IO[str], purpose: str) -> None:
    if _try_lock(queue):
        return
    log.info("%s waits: other jobs are before it", purpose)
    while not _try_lock(queue):
        time.sleep(POLL_S)


def _lock(device: str) -> IO[str] | None:
    file = _open(device)
    if _try_lock(file):
        return file
    file.close()
    return None


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(name: str) -> IO[str]:
    default = Path(tempfile.gettempdir()) / "invfusion-leases"
    folder = Path(os.environ.get(FOLDER, default))
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    path = folder / f"{name}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    return os.fdopen(descriptor, "r+")


@contextlib.contextmanager
def _visible(devices: Sequence[str]) -> Iterator[None]:
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(devices)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
