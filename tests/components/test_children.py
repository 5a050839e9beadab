"""Nothing that a flow starts outlives it."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from components.children import child

# Tells its process id, then a grandchild's; writes a file when it is interrupted, as training writes a checkpoint.
WORKER = """
    import pathlib, signal, subprocess, sys, time
    def interrupted(*_):
        time.sleep(0.2)
        pathlib.Path({saved!r}).touch()
        sys.exit(130)
    signal.signal(signal.SIGINT, interrupted)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path({started!r}).write_text(str(grandchild.pid))
    time.sleep(60)
"""
PARENT = """
    import os, sys
    from components.children import child
    with child([sys.executable, "-c", {worker!r}], os.environ, 5) as process:
        process.wait()
"""


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {"saved": tmp_path / "saved", "started": tmp_path / "started"}


def worker(files: dict[str, Path]) -> str:
    return textwrap.dedent(WORKER.format(**{name: str(path) for name, path in files.items()}))


def grandchild(files: dict[str, Path]) -> int:
    wait_for(lambda: files["started"].exists() and files["started"].read_text())
    return int(files["started"].read_text())


def test_what_has_nothing_to_save_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    asleep = "import time; print('here', flush=True); time.sleep(60)"
    with child(
        [sys.executable, "-c", asleep], os.environ, 10, interruption=signal.SIGTERM, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
    assert process.returncode == -signal.SIGTERM
    assert not capfd.readouterr().err


def test_an_exception_interrupts_the_group_and_waits_for_it(files: dict[str, Path]) -> None:
    with contextlib.suppress(RuntimeError), child([sys.executable, "-c", worker(files)], os.environ, 10) as process:
        pid = grandchild(files)
        raise RuntimeError
    assert files["saved"].exists()
    assert process.returncode == 130
    assert not is_alive(pid)


def test_what_does_not_stop_is_killed() -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    with child([sys.executable, "-c", stubborn], os.environ, 1, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_parent_ends_its_children(files: dict[str, Path], number: signal.Signals) -> None:
    code = textwrap.dedent(PARENT.format(worker=worker(files)))
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    pid = grandchild(files)
    parent.send_signal(number)
    parent.wait()
    wait_for(files["saved"].exists)
    wait_for(lambda: not is_alive(pid))
