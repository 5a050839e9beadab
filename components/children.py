"""Child processes that never outlive their parent, and the signals that ask for the end."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Waits for the end of a pipe whose other end this process holds, and which closes however this process ends.
_GUARD = """
read _
sleep {linger}
kill -s {signal} -- -{group}
for _ in $(seq {patience}); do kill -s 0 -- -{group} || exit; sleep 1; done
kill -s KILL -- -{group}
"""


@contextlib.contextmanager
def child(
    command: Sequence[str],
    environment: Mapping[str, str],
    patience: int,
    linger: int = 0,
    interruption: signal.Signals = signal.SIGINT,
    **options: Any,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command with all that it starts for the length of the block; afterwards nothing of it is left.

    At the end of the block, or when this process is killed, the whole group is interrupted, by SIGINT so that training
    writes its checkpoint first; what still runs `patience` seconds later is killed. When this process is killed, a
    service lingers `linger` seconds for those that still need it.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
    name = interruption.name.removeprefix("SIG")
    script = _GUARD.format(group=process.pid, patience=patience, linger=linger, signal=name)
    guard = subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        try:
            _interrupt(process, interruption, patience)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            guard.kill()
            guard.communicate()


def _interrupt(leader: "subprocess.Popen[bytes]", interruption: signal.Signals, patience: int) -> None:
    """Interrupt a process group and wait until it is empty, at most `patience` seconds."""
    end = time.monotonic() + patience
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, interruption)
        while time.monotonic() < end:
            leader.poll()
            os.killpg(leader.pid, 0)
            time.sleep(0.05)


@contextlib.contextmanager
def on_stop_signals(ask: Callable[[int], None]) -> Iterator[None]:
    """Turn SIGTERM and SIGINT into a request; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda received, _frame: ask(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
