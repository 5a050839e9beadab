"""What a run's page shows, and that no trouble with it stops the work."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from components import tracking
from components.progress import FOLDER, Progress
from components.records import Record, write_records
from flows import jobs, pages
from invfusion.metrics import METRICS


class FakeClient:
    """Keeps artifacts as the server would."""

    def __init__(self) -> None:
        self.artifacts: dict[Any, Any] = {}
        self.tasks: dict[str, list[str]] = {}

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None: ...

    def create_artifact(self, wanted: Any) -> Any:
        wanted = wanted.model_copy()
        object.__setattr__(wanted, "id", uuid4())
        self.artifacts[wanted.id] = wanted
        return wanted

    def update_artifact(self, key: Any, change: Any) -> None:
        self.artifacts[key].data = change.data

    def create_task_run(self, task: Any, run: Any, key: str, name: str) -> Any:
        self.tasks[key] = [name]
        return SimpleNamespace(id=key)

    def set_task_run_state(self, key: str, state: Any, force: bool) -> None:
        self.tasks[key].append(state.type.value)

    def by_key(self) -> dict[str, Any]:
        return {artifact.key: artifact.data for artifact in self.artifacts.values()}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    monkeypatch.chdir(tmp_path)
    fake = FakeClient()
    monkeypatch.setattr(pages, "get_client", lambda **_: fake)
    return fake


def test_progress_speed_and_pictures_appear_and_are_updated(client: FakeClient) -> None:
    page = pages.Page(uuid4())
    progress = Progress("palette", 1000, "images")
    progress.begin(200)
    time.sleep(0.02)  # a file's time is that of the last tick, which may lie before the page's
    progress.advance(500, loss=0.25)
    progress.show(np.zeros((4, 4, 3), np.uint8))
    page.refresh()
    found = client.by_key()
    assert found["palette-progress"] == 50
    assert "500 of 1,000 images" in found["palette-status"]
    assert "| loss | 0.25 |" in found["palette-status"]
    assert "unknown" not in found["palette-status"]
    assert found["palette-samples"].startswith("![](data:image/png;base64,")
    progress.advance(1000, loss=0.1)
    page.refresh()
    assert client.by_key()["palette-progress"] == 100
    assert len(client.artifacts) == 3


def test_other_steps_and_older_files_are_not_shown(client: FakeClient) -> None:
    Progress("invfusion", 10, "images").begin(1)
    time.sleep(0.02)
    page = pages.Page(uuid4(), ["palette"])
    Progress("mmse", 10, "images").begin(1)
    page.refresh()
    assert client.artifacts == {}


@pytest.mark.parametrize("names", [(), ("evaluate",)])
def test_the_evaluation_is_a_table(client: FakeClient, names: tuple[str, ...]) -> None:
    page = pages.Page(uuid4(), names)
    time.sleep(0.02)  # a file's time is that of the last tick, which may lie before the page's
    found = Record(
        method="invfusion", degradation="matrix", metric="psnr", value=16.0, low=15.5, high=16.5, n=2, nfe=1,
        measurements_sha256=None,
    )  # fmt: skip
    others = (replace(found, metric="fid", value=None), replace(found, metric="consistency_mse", low=None))
    write_records([found, *others, replace(found, metric="other")], pages.EVALUATION)
    page.refresh()
    row = {"degradation": "matrix", "method": "invfusion", "psnr": METRICS["psnr"].show(16.0) + " [15.5, 16.5]"}
    row |= {"fid": "unavailable", "consistency_mse": METRICS["consistency_mse"].show(16.0)}
    assert json.loads(client.by_key()["results"]) == [row]


def test_a_server_that_is_gone_costs_the_page_alone(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(**_: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(pages, "get_client", dead)
    with pages.shown(str(uuid4())):
        Progress("palette", 10, "images").begin(1)
    assert client.artifacts == {}


def test_a_disk_that_is_full_costs_the_progress_alone(client: FakeClient) -> None:
    FOLDER.parent.mkdir()
    FOLDER.write_text("a file where the folder should be")
    progress = Progress("palette", 10, "images")
    progress.begin(0)
    progress.advance(5)
    progress.show(np.zeros((4, 4, 3), np.uint8))


def test_the_stages_of_a_run_are_its_tasks(client: FakeClient) -> None:
    with pages.Timeline(str(uuid4())) as timeline:
        timeline.begin("stage")
        timeline.begin("train@palette")
        timeline.link("train-palette", "http://mlflow/#/experiments/1/runs/2")
    assert client.tasks == {"1": ["stage", "RUNNING", "COMPLETED"], "2": ["train@palette", "RUNNING", "CANCELLED"]}
    assert "[train-palette](http://mlflow/#/experiments/1/runs/2)" in client.by_key()["links"]
    assert "commit" in client.by_key()["links"]
    nowhere = pages.Timeline(None)
    nowhere.begin("stage")
    nowhere.link("a", "b")


@pytest.mark.parametrize("line", ["Running stage 'train@palette':\n", "Running stage 'oracle/dvc.yaml:oracle':\n"])
def test_dvc_says_which_stage_runs(line: str) -> None:
    assert jobs.RUNS.match(line)[1] in ("train@palette", "oracle")  # type: ignore[index]


def test_a_stage_says_where_mlflow_shows_it() -> None:
    assert pages.link_of(tracking.RUN_LINE % ("train-a", "http://h:1/#/x") + "\n") == ("train-a", "http://h:1/#/x")
    assert pages.link_of("MLflow at http://h:1 does not answer") is None
