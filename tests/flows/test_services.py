"""`make up` starts what is missing; `make down` ends exactly that, and never a stranger; dead runs are found."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import pytest
from prefect.states import Cancelling, Completed, Pending, Running, Suspended

from flows import entry, records, services
from flows.services import Note, Service
from invfusion.errors import ConfigError, ServiceError

SLEEP = "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    services.down()


def sleeper(name: str = "worker") -> Service:
    return Service(name, [sys.executable, "-c", SLEEP], {})


def test_down_ends_a_service_with_all_that_it_started(folder: Path) -> None:
    services.start(sleeper())
    process = process_of("worker")
    wait_for(lambda: process.children())
    family = [process, *process.children(recursive=True)]
    assert f"process {process.pid}" in services.overview()
    services.down()
    assert not any(psutil.pid_exists(member.pid) and member.status() != "zombie" for member in family)
    assert services.read("worker") is None


@pytest.mark.parametrize("and_then", [services.down, lambda: services.start(sleeper())])
def test_what_a_killed_service_left_is_ended(folder: Path, and_then: Callable[[], None]) -> None:
    services.start(sleeper())
    process = process_of("worker")
    wait_for(lambda: process.children())
    (left,) = process.children()
    process.kill()
    wait_for(lambda: "NOT RUNNING" in services.overview())
    assert left.is_running()
    and_then()
    assert not left.is_running()


def process_of(name: str) -> psutil.Process:
    note = services.read(name)
    assert note is not None
    process = note.process()
    assert process is not None
    return process


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stranger_with_the_same_number_is_left_alone(folder: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    services.FOLDER.mkdir(parents=True)
    note = {"pid": stranger.pid, "started": psutil.Process(stranger.pid).create_time() - 100, "address": ""}
    (services.FOLDER / "prefect.json").write_text(json.dumps(note))
    assert "NOT RUNNING" in services.overview()
    services.down()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_service_that_does_not_come_up_names_its_log(folder: Path) -> None:
    failing = Service("mlflow", [sys.executable, "-c", "raise SystemExit('no')"], {}, "http://x", "http://127.0.0.1:9/")
    with pytest.raises(ServiceError, match=r"mlflow did not start; state/services/mlflow\.log says why"):
        services.start(failing)
    assert (services.FOLDER / "mlflow.log").read_text() == "no\n"


def test_a_port_in_use_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "answers", lambda _: True)
    with pytest.raises(ServiceError, match=r"did not start answers at http://127\.0\.0\.1:4200.*PREFECT_PORT"):
        services.start(Service("prefect", ["false"], {}, "http://127.0.0.1:4200", "http://127.0.0.1:4200/api/health"))


def test_servers_bind_to_loopback_unless_asked_otherwise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://user:hunter2@db/mlflow"
    params = SimpleNamespace(runtime=SimpleNamespace(mlflow_uri=uri))
    made = list(services.services(params))  # type: ignore[arg-type]
    assert [service.name for service in made] == ["prefect", "mlflow", "worker"]
    assert all("127.0.0.1" in service.command for service in made[:2])
    assert "hunter2" not in " ".join(word for service in made for word in service.command)
    monkeypatch.setenv(services.HOST, "10.0.0.1")
    assert all("10.0.0.1" in service.command for service in list(services.services(params))[:2])  # type: ignore[arg-type]


def test_the_address_of_the_own_server_is_not_taken_for_its_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SimpleNamespace(runtime=SimpleNamespace(mlflow_uri="sqlite:///mlflow.db"))
    monkeypatch.setenv("MLFLOW_PORT", "5123")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5123/")
    made = {service.name: service for service in services.services(params)}  # type: ignore[arg-type]
    assert made["mlflow"].environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5123")
    assert "mlflow" not in {service.name for service in services.services(params)}  # type: ignore[arg-type]


def test_a_broken_note_counts_as_none(folder: Path) -> None:
    services.FOLDER.mkdir(parents=True)
    (services.FOLDER / "prefect.json").write_text("{")
    assert services.read("prefect") is None
    assert Note(2**22 + 1, 0.0, "").process() is None


# Runs that died without a word.


class FakePrefect:
    """Knows one run's state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def read_flow_run(self, _: Any) -> Any:
        return SimpleNamespace(state=self.state)

    def set_flow_run_state(self, _: Any, state: Any, force: bool) -> None:
        assert force
        self.state = state


@pytest.mark.parametrize(
    ("state", "final"),
    [
        (Running(), "CRASHED"),
        (Cancelling(), "CANCELLED"),
        (Completed(), "COMPLETED"),
        (Suspended(), "PAUSED"),
    ],
)
def test_a_dead_run_is_marked_and_a_finished_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any, final: str
) -> None:
    monkeypatch.chdir(tmp_path)
    prefect, run_id = FakePrefect(state), str(uuid4())
    monkeypatch.setattr(records, "get_client", lambda **_: nullcontext(prefect))
    monkeypatch.setattr(records, "_kept", [])
    sweeper = records.Sweeper()
    records.keep(run_id)
    assert sweeper.sweep(grace=0.0) == []
    assert (records.FOLDER / run_id).exists()
    records._kept.pop().release()  # the process dies
    assert sweeper.sweep(grace=60.0) == []  # Prefect may still say so itself
    assert sweeper.sweep(grace=0.0) == ([run_id] if final in ("CRASHED", "CANCELLED") else [])
    assert prefect.state.type.value == final
    assert not (records.FOLDER / run_id).exists()


@pytest.mark.parametrize(
    ("process", "age", "dies"),
    [
        ("gone", 60, True),
        ("gone", 1, False),
        ("alive", 60, False),
        ("elsewhere", 60, False),
        ("", 60, False),
        ("", 600, True),
        ("gone somewhere", 60, False),
        ("gone somewhere", 600, True),
        ("alive somewhere", 600, False),
    ],
)
def test_a_run_that_died_before_it_began_is_marked(
    monkeypatch: pytest.MonkeyPatch, process: str, age: float, dies: bool
) -> None:
    here = socket.gethostname()
    gone, alive = str(2**22 + 1), str(os.getpid())
    pids = {"gone": f"{here}:{gone}", "alive": f"{here}:{alive}", "elsewhere": f"other:{gone}"}
    pids |= {"gone somewhere": gone, "alive somewhere": alive}
    state = Pending(timestamp=datetime.now(UTC) - timedelta(seconds=age))
    prefect = FakePrefect(state)
    run = SimpleNamespace(id=uuid4(), state=state, infrastructure_pid=pids.get(process))
    prefect.read_flow_runs = lambda **_: [run]  # type: ignore[attr-defined]
    monkeypatch.setattr(records, "get_client", lambda **_: nullcontext(prefect))
    monkeypatch.setattr(records, "ended", lambda: iter(()))
    assert records.Sweeper(("gpu",)).sweep() == ([str(run.id)] if dies else [])
    assert prefect.state.is_crashed() == dies


def test_a_run_has_its_name_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(id=uuid4(), flow_id=uuid4(), name="nickel-mussel")
    run.parameters = {"model": "palette", "settings": {"train": {"lr": 0.001}}, "keep": True}
    prefect = FakePrefect(None)
    prefect.read_flow_runs = lambda **_: [run]  # type: ignore[attr-defined]
    prefect.read_flow = lambda _: SimpleNamespace(name="train")  # type: ignore[attr-defined]
    prefect.update_flow_run = lambda _, name: setattr(run, "name", name)  # type: ignore[attr-defined]
    monkeypatch.setattr(records, "get_client", lambda **_: nullcontext(prefect))
    sweeper = records.Sweeper(("gpu",))
    sweeper.name_waiting()
    assert run.name == "train-palette train.lr=0.001"
    run.name = "mine"
    sweeper.name_waiting()
    assert run.name == "mine"


# Work that is done stays done where Prefect cannot be told.


def test_a_server_that_dies_behind_finished_work_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flow(works: bool) -> None:
        if works:
            entry._done.append("stage")
        raise ConnectionError("refused")

    monkeypatch.setattr(entry, "_done", [])
    with pytest.raises(ConnectionError):
        entry.run_recorded(flow, {"works": False})
    entry.run_recorded(flow, {"works": True})
    assert "the work is done, but Prefect could not be told: refused" in caplog.text


def test_an_error_of_the_work_itself_is_never_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def flow() -> None:
        raise ConfigError("wrong")

    monkeypatch.setattr(entry, "_done", ["stage"])
    with pytest.raises(ConfigError):
        entry.run_recorded(flow, {})
