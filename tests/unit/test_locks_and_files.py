"""Locks that end with their process; files that are whole or absent."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from invfusion.files import previous, replace_folder, replacing, write_text
from invfusion.locks import holder, lock, locked, shared

HOLD = """
import os, sys, time
from pathlib import Path
from invfusion.locks import lock
held = lock(Path(sys.argv[1]), "the first")
held.acquire()
{fork}
print("held", flush=True)
time.sleep(60)
"""
# A child that was forked off, as a data loader forks its workers off, and has begun to run, does not keep the lock.
FORK = """
begun, begins = os.pipe()
child = os.fork()
if child == 0:
    os.write(begins, b".")
    time.sleep(60)
os.read(begun, 1)
print(child, flush=True)
"""


@contextlib.contextmanager
def other_process(path: Path, fork: str = ""):  # type: ignore[no-untyped-def]
    command = [sys.executable, "-c", HOLD.format(fork=fork), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_any_user_may_lock_the_file(tmp_path: Path) -> None:
    """Whatever the umask of who came first."""
    before = os.umask(0o077)
    try:
        with locked(tmp_path / "lock"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_another_users_lock_file_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse)
    with locked(tmp_path / "lock") as is_ours:
        assert is_ours


def test_another_process_is_refused_and_sees_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lock"
    with other_process(path) as process:
        assert process.stdout.readline() == "held\n"
        with locked(path, wait=False) as is_ours:
            assert not is_ours
        assert holder(path) == "the first"
        process.kill()
        process.wait()
        with locked(path, wait=False) as is_ours:
            assert is_ours
            assert holder(path) == str(os.getpid())


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with other_process(path, FORK) as process:
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        try:
            with locked(path, wait=False) as is_ours:
                assert is_ours
        finally:
            os.kill(child, signal.SIGKILL)


def test_sharers_exclude_who_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with shared(path), shared(path), locked(path, wait=False) as is_ours:
        assert not is_ours
    with locked(path, wait=False) as is_ours:
        assert is_ours


def test_a_lock_says_who_holds_it_after_a_longer_note(tmp_path: Path) -> None:
    for note in ("a long note", "short"):
        held = lock(tmp_path / "lock", note)
        held.acquire()
        held.release()
    assert holder(tmp_path / "lock") == "short"


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_text(path, "old")
    with contextlib.suppress(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for content in ("one", "two"):
        write_text(tmp_path / "fresh" / "file", content)
        replace_folder(tmp_path / "fresh", tmp_path / "folder")
    assert (tmp_path / "folder" / "file").read_text() == "two"
    assert not previous(tmp_path / "folder").exists()
