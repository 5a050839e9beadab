"""What a container begins with: nothing runs whose results would vanish with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.profiles import profile_text
from flows import jobs
from flows.container import REMOTE, prepare
from flows.workspaces import Wanted
from invfusion.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    Path("params.yaml").write_text(profile_text("digits16"))
    for name, value in {REMOTE: "s3://bucket/dvc", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_command_runs_once_its_results_have_somewhere_to_go(project: Path) -> None:
    command = [sys.executable, "-m", "flows.container", "sh", "-c", "echo ran; exit 3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "ran\n")
    assert "state is no volume" in done.stderr
    config = (project / ".dvc/config.local").read_text()
    assert "remote = shared" in config
    assert "url = s3://bucket/dvc" in config


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", [REMOTE, "MLFLOW_TRACKING_URI"])
def test_nothing_runs_whose_results_would_vanish(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=name):
        prepare()


def test_parameters_cannot_be_kept_where_files_do_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(jobs.PUSHES, "1")
    with pytest.raises(ConfigError, match="files do not last"):
        jobs.run_job(lambda _: [], Wanted(changes={"train": {"lr": 0.5}}, keeps=True), False)


def test_the_image_begins_with_it() -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["python", "-m", "flows.container"]' in image
    assert f"{jobs.PUSHES}=1" in image
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ".git" not in ignored
    assert ".venv" in ignored
