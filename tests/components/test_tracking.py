"""Runs reach MLflow, survive its absence, and none arrives twice."""

import contextlib
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from components import tracking
from components.tracking import client as client_module
from components.tracking import delivery
from components.tracking.journal import Journal
from invfusion.errors import ServiceError


class FakeParams:
    """The part of Params that tracking reads."""

    def __init__(self, uri: str, lr: float = 1e-3) -> None:
        self.data = SimpleNamespace(name="digits16")
        self.runtime = SimpleNamespace(mlflow_uri=uri)
        self.lr = lr

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"seed": 0, "train": {"lr": self.lr, "betas": [0.9, 0.99]}}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeParams:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return FakeParams("sqlite:///mlflow.db")


def stored(params: FakeParams, run: Any) -> Any:
    return tracking.connect(tracking.tracking_uri(params)).get_run(run.run_id)


def history(params: FakeParams, run: Any, name: str) -> list[tuple[int, float]]:
    client = tracking.connect(tracking.tracking_uri(params))
    return sorted((m.step, m.value) for m in client.get_metric_history(run.run_id, name))


def outage(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> Callable[[], None]:
    """Make deliveries fail as they do when a server dies; the returned function ends that."""
    original = dict(delivery.SENDERS)

    def dead(*_: Any) -> None:
        raise ConnectionError("connection refused")

    for kind in kinds or original:
        monkeypatch.setitem(delivery.SENDERS, kind, dead)
    return lambda: [monkeypatch.setitem(delivery.SENDERS, k, f) for k, f in original.items()] and None


def test_a_run_holds_what_was_logged(params: FakeParams, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with tracking.start_run(params, "train", "palette") as run:
        run.log_metrics({"loss": 2.0}, 64)
        run.log_metrics({"loss": 1.0}, 128)
        run.log_image("samples", np.zeros((8, 8, 3), np.uint8), 128)
        run.log_artifact(tmp_path / "note.txt", "notes")
        run.log_dataset("digits16", "ab" * 32, "artifacts/staged")
    found = stored(params, run)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"seed": "0", "train.lr": "0.001", "train.betas": "[0.9, 0.99]"}
    assert history(params, run, "loss") == [(64, 2.0), (128, 1.0)]
    assert found.data.tags["data.digest"] == "ab" * 32
    assert found.data.tags["version.torch"]
    assert found.inputs.dataset_inputs[0].dataset.digest == "ab" * 16
    files = {path.name.split("+")[0] for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()}
    assert files == {"samples", "note.txt", "params.json"}
    assert not list((tmp_path / "state/tracking").rglob("*.png"))


def test_other_ranks_log_nothing(params: FakeParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", "1")
    tracking.check_reachable(params)
    with tracking.start_run(params, "train", "palette") as run:
        run.log_metrics({"loss": 1.0}, 0)
    assert not (tmp_path / "mlflow.db").exists()


def test_the_environment_names_the_store(params: FakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking.tracking_uri(params) == "http://tracking:5000"


def test_a_refused_address_is_told_without_its_password(params: FakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9 cannot be used") as caught:
        tracking.check_reachable(params)
    assert "secret" not in str(caught.value)
    assert "unset MLFLOW_TRACKING_URI" in str(caught.value)


def test_a_silent_server_is_asked_twice(params: FakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ServiceError):
            tracking.check_reachable(params)
        silent.settimeout(0)
        asked = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
    assert asked == 2


class Slow(BaseHTTPRequestHandler):
    """A server of MLflow that has just started, on a busy machine."""

    def do_POST(self) -> None:
        time.sleep(4.5)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")


def test_a_slow_server_is_given_time(params: FakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with HTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        tracking.check_reachable(params)
        server.shutdown()


def test_an_unusable_database_is_named(params: FakeParams, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database")
    with pytest.raises(ServiceError, match=r"mlflow\.db cannot be used"):
        tracking.check_reachable(params)


def test_a_store_that_was_killed_half_made_is_made_anew(params: FakeParams, tmp_path: Path) -> None:
    for name in ("mlflow.db.partial", "mlflow.db.partial-journal"):
        (tmp_path / name).write_text("half a database")
    tracking.check_reachable(params)
    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


def test_an_outage_in_the_middle_loses_and_doubles_nothing(params: FakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0.0)
    with tracking.start_run(params, "train", "palette") as run:
        run.log_metrics({"loss": 3.0}, 64)
        restore = outage(monkeypatch)
        run.log_metrics({"loss": 2.0}, 128)
        run.log_image("samples", np.zeros((8, 8, 3), np.uint8), 128)
    journal = Journal(client_module.STATE / run.run_id)
    assert journal.path.read_text().count("\n") == 3
    restore()
    lines = journal.path.read_text()
    with tracking.start_run(params, "train", "unconditional"):
        assert journal.is_empty()
    assert not journal.path.parent.exists()
    assert history(params, run, "loss") == [(64, 3.0), (128, 2.0)]
    assert stored(params, run).info.status == "FINISHED"
    # A crash between delivery and the journal's rewriting delivers the same entries again.
    journal.path.parent.mkdir()
    journal.path.write_text(lines.splitlines()[0] + "\n")
    with tracking.start_run(params, "train", "unconditional"):
        pass
    assert history(params, run, "loss") == [(64, 3.0), (128, 2.0)]


def test_an_outage_that_ends_is_made_up_for_within_the_run(params: FakeParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0.0)
    with tracking.start_run(params, "train", "palette") as run:
        restore = outage(monkeypatch)
        run.log_metrics({"loss": 3.0}, 64)
        restore()
        run.log_metrics({"loss": 2.0}, 128)
        assert history(params, run, "loss") == [(64, 3.0), (128, 2.0)]
        assert Journal(client_module.STATE / run.run_id).is_empty()


def test_a_password_stands_in_no_file_message_or_param(
    params: FakeParams, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, client = "hunter2", tracking.connect(tracking.tracking_uri(params))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{secret}@127.0.0.1:9")
    monkeypatch.setattr(client_module, "connect", lambda _: client)
    with tracking.start_run(params, "train", "palette") as run:
        outage(monkeypatch)
        run.log_metrics({"loss": 1.0}, 0)
    assert "MLflow at http://user:***@127.0.0.1:9 does not answer" in caplog.text
    assert secret not in caplog.text
    written = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert all(secret not in path.read_text() for path in written)
    assert secret not in str(client.get_run(run.run_id).to_dictionary())


def test_entries_of_another_store_keep_waiting(params: FakeParams) -> None:
    journal = Journal(Path("state/tracking/r"))
    journal.append({"kind": "tags", "run": "r", "uri": "http://elsewhere", "rows": []})
    assert not journal.synchronise("sqlite:///mlflow.db", lambda _: True)
    assert json.loads(journal.path.read_text())["uri"] == "http://elsewhere"


def test_a_refused_value_does_not_stop_the_run(params: FakeParams) -> None:
    with tracking.start_run(params, "train", "palette") as run:
        run.log_metrics({"a name that MLflow refuses: ↑": 1.0}, 0)
        run.log_artifact(Path("does-not-exist.txt"))
    assert Journal(client_module.STATE / run.run_id).is_empty()


def test_an_interrupted_run_is_continued(params: FakeParams) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.start_run(params, "train", "palette") as first:
        raise KeyboardInterrupt
    assert stored(params, first).info.status == "KILLED"
    with tracking.start_run(params, "train", "palette") as second:
        pass
    assert second.run_id == first.run_id
    assert stored(params, first).info.status == "FINISHED"
    with tracking.start_run(params, "train", "palette") as third:
        pass
    assert third.run_id != first.run_id


def test_other_parameters_start_another_run(params: FakeParams) -> None:
    with pytest.raises(RuntimeError), tracking.start_run(params, "train", "palette") as first:
        raise RuntimeError
    with tracking.start_run(FakeParams("sqlite:///mlflow.db", lr=1e-4), "train", "palette") as second:
        pass
    assert second.run_id != first.run_id


def test_a_moved_project_writes_to_its_new_place(params: FakeParams, tmp_path: Path, monkeypatch: Any) -> None:
    client = tracking.connect(tracking.tracking_uri(params))
    client.create_experiment("digits16", artifact_location="file:///a/former/place")
    with tracking.start_run(params, "train", "palette") as run:
        pass
    assert stored(params, run).info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())


def _open_store(folder: str) -> None:
    import os

    os.chdir(folder)
    tracking.check_reachable(FakeParams("sqlite:///mlflow.db"))


@pytest.mark.slow
def test_two_processes_create_the_store_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_open_store, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
