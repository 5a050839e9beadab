"""A job follows DVC, ends with its worker, and notices by itself that it was cancelled."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import Abort, Pause
from prefect.states import Cancelling, Crashed, Suspended

from flows import jobs
from flows.workspaces import Wanted
from invfusion.errors import ServiceError


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The lines of the run's log."""
    lines: list[str] = []

    class Log:
        def log(self, _: int, text: str, *arguments: Any) -> None:
            lines.append(text % arguments)

        info = error = lambda self, text, *arguments: lines.append(text % arguments)

    monkeypatch.setattr(jobs, "get_run_logger", Log)
    monkeypatch.setattr(jobs, "_state", lambda: (True, None))
    before = signal.getsignal(signal.SIGTERM)
    yield lines
    signal.signal(signal.SIGTERM, before)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_exit_code_are_followed(heard: list[str]) -> None:
    code = "import os, sys; print('one'); print('two'); print(os.environ['INVFUSION_JOB']); sys.exit(3)"
    assert jobs._follow(python(code), os.getppid()) == 3
    assert set(heard) == {"one", "two", "1"}


def test_a_run_ends_with_its_worker(heard: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        jobs._follow(python("import time; time.sleep(60)"), os.getppid() + 1)
    assert ended.value.code == 143
    assert any("the worker that started this run is gone" in line for line in heard)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [(Cancelling(), "CANCELLED"), (Suspended(), Pause), (Crashed(), Abort), (None, Abort)],
    ids=["cancelling", "suspended", "crashed", "deleted"],
)
def test_a_run_that_should_not_go_on_ends_without_its_worker(
    heard: list[str], monkeypatch: pytest.MonkeyPatch, state: Any, outcome: Any
) -> None:
    monkeypatch.setattr(jobs, "_state", lambda: (False, state))
    monkeypatch.setattr(jobs, "LOOK_S", 0.1)
    monkeypatch.setattr(jobs, "STOPPED_S", 0.3)
    with pytest.raises(jobs.StoppedError) as stopped:
        jobs._follow(python("import time; time.sleep(60)"), os.getppid())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    if outcome == "CANCELLED":
        assert jobs._end_as(stopped.value.state).type.value == outcome
    else:
        with pytest.raises(outcome):
            jobs._end_as(stopped.value.state)


@pytest.mark.parametrize(
    ("end", "raised"), [(1, ServiceError), (jobs.StoppedError(Cancelling()), None), (0, None)], ids=str
)
def test_the_workspace_learns_whether_the_job_succeeded(monkeypatch: pytest.MonkeyPatch, end: Any, raised: Any) -> None:
    """Where it did not, the workspace keeps the training states."""
    told: list[bool] = []

    @contextlib.contextmanager
    def workspace(*_: Any) -> Iterator[Any]:
        told.append(False)
        yield SimpleNamespace(params=None, keep=lambda _: None)
        told.append(True)

    def follow(*_: Any) -> int:
        if isinstance(end, Exception):
            raise end
        return int(end)

    for name, stand_in in {"workspace": workspace, "_follow": follow}.items():
        monkeypatch.setattr(jobs, name, stand_in)
    monkeypatch.setattr(jobs, "shown", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(jobs.records, "keep", lambda _: None)
    with pytest.raises(raised) if raised else contextlib.nullcontext():
        jobs.run_job(lambda _: ["train@palette"], Wanted(), force=False)
    assert told[-1] == (end == 0)
