"""GPUs of this host, lent to one job each.

A lease is a lock that the operating system keeps with the process that took it (and with those that inherited it), so
it is free the moment they are gone, however they died. All working copies on a host share the leases.
"""

import contextlib
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from invfusion.errors import ConfigError
from invfusion.locks import holder, lock, locked

log = logging.getLogger(__name__)

# "0,1,3": the devices that jobs may use. A host without GPUs has slots only where they are declared here.
SLOTS = "INVFUSION_SLOTS"
FOLDER = "INVFUSION_LEASES"
SCHEDULERS = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.5


def slots() -> list[str]:
    """The devices to share: those that are declared, else those that CUDA shows; empty where there are none, or where a
    scheduler has given this process its devices."""
    if SLOTS not in os.environ and is_scheduled():
        return []
    for name in (SLOTS, VISIBLE):
        if name in os.environ:
            return [part.strip() for part in os.environ[name].split(",") if part.strip()]
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i in range(len(re.findall("^GPU ", answer, re.MULTILINE)))]


def is_scheduled() -> bool:
    """Whether this process runs under Slurm or Kubernetes, which lend GPUs themselves."""
    return any(name in os.environ for name in SCHEDULERS)


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
        path = _path(device)
        with locked(path, wait=False) as is_free:
            if not is_free:
                found[device] = holder(path)
    return found


def _take(devices: Sequence[str], count: int, purpose: str, stack: contextlib.ExitStack) -> list[str]:
    note = f"{purpose} (process {os.getpid()})"
    # Processes that work for this one on a device keep the lease when this one dies.
    leases = {device: lock(_path(device), note, inheritable=True) for device in devices}
    held: list[str] = []
    with _turn(note):
        while len(held) < count:
            for device in devices:
                if device not in held and len(held) < count and _try(leases[device]):
                    stack.callback(leases[device].release)
                    held.append(device)
            if len(held) < count:
                time.sleep(POLL_S)
    return sorted(held, key=devices.index)


@contextlib.contextmanager
def _turn(note: str) -> Iterator[None]:
    """Hold the head of the queue of those who wait for devices, which are served in the order in which they came."""
    with locked(_path("queue")):
        number = max(_waiting(), default=0) + 1
        ticket = lock(_ticket(number), note)
        ticket.acquire()
    try:
        if not _is_next(number):
            log.info("%s waits: other jobs are before it", note)
            while not _is_next(number):
                time.sleep(POLL_S)
        yield
    finally:
        ticket.release()


def _is_next(number: int) -> bool:
    with locked(_path("queue")):
        return min(_waiting(), default=number) >= number


def _waiting() -> list[int]:
    """The numbers of those who wait. A ticket is void once its process is gone; the queue's lock must be held."""
    found = []
    for path in _ticket(0).parent.glob("ticket-*.lock"):
        with locked(path, wait=False) as is_void:
            if is_void:
                path.unlink()
            else:
                found.append(int(path.stem.removeprefix("ticket-")))
    return found


def _ticket(number: int) -> Path:
    return _path(f"ticket-{number:012d}")


def _try(lease: FileLock) -> bool:
    try:
        lease.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _path(name: str) -> Path:
    folder = Path(os.environ.get(FOLDER, Path(tempfile.gettempdir()) / "invfusion-leases"))
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
    # Names of parts of a GPU have slashes: MIG-GPU-<uuid>/1/0.
    return folder / f"{quote(name, safe='')}.lock"


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
