"""A job follows DVC, ends with its worker, and notices by itself that it was cancelled."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flows import jobs


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines of the run's log."""
    lines: list[str] = []

    class Log:
        def log(self, _: int, text: str, *arguments: Any) -> None:
            lines.append(text % arguments)

        info = error = lambda self, text, *arguments: lines.append(text % arguments)

    monkeypatch.setattr(jobs, "get_run_logger", Log)
    monkeypatch.setattr(jobs, "_is_cancelling", lambda: False)
    before = signal.getsignal(signal.SIGTERM)
    yield lines
    signal.signal(signal.SIGTERM, before)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_exit_code_are_followed(heard: list[str]) -> None:
    code = "import os, sys; print('one'); print('two is busy'); print(os.environ['INVFUSION_JOB']); sys.exit(3)"
    assert jobs._follow(python(code), os.getppid()) == (3, True)
    assert set(heard) == {"one", "two is busy", "1"}


def test_a_run_ends_with_its_worker(heard: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        jobs._follow(python("import time; time.sleep(60)"), os.getppid() + 1)
    assert ended.value.code == 143
    assert any("the worker that started this run is gone" in line for line in heard)


def test_a_cancelled_run_ends_without_its_worker(heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_is_cancelling", lambda: True)
    monkeypatch.setattr(jobs, "LOOK_S", 0.1)
    monkeypatch.setattr(jobs, "CANCEL_S", 0.3)
    start = time.monotonic()
    with pytest.raises(jobs.CancelledError):
        jobs._follow(python("import time; time.sleep(60)"), os.getppid())
    assert time.monotonic() - start < 15
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_path_in_use_is_waited_for(heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers, commands = [(255, True), (0, False)], []
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)
    monkeypatch.setattr(jobs, "_follow", lambda command, _: commands.append(command) or answers.pop(0))
    found = [{"stage", "train@palette"}, {"train@palette"}]
    monkeypatch.setattr(jobs, "stale", lambda _: found.pop(0))
    assert jobs._repro(["train@palette"], [], 1) == 0
    assert ["--single-item" in command for command in commands] == [False, True]
