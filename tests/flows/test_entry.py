"""Every flow's command line: what is wrong is said in one line, before any work."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from components.params import load_params
from flows import entry
from flows.reproduce import PARAMS, check_data, time_table, use_profile
from invfusion.errors import ConfigError, DataError, ServiceError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_typo_is_named_before_any_work(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("warmup_images:", "warmup_image:", 1)
    (tmp_path / "params.yaml").write_text(text)
    command = [sys.executable, "-m", "flows.train", "--variant", "palette", "--params", str(tmp_path / "params.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "train.warmup_image: unknown key; did you mean 'warmup_images'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_prefect_server_is_named_within_seconds(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/api"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.stage"],
        cwd=ROOT, env=os.environ | {"PREFECT_API_URL": url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no Prefect server answers at PREFECT_API_URL={url}")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - start < 30


def test_a_deliberate_error_is_told_once_and_without_a_traceback() -> None:
    code = """
import logging
from flows import entry
from invfusion.errors import DataError
with entry.clear_ends():
    try:
        raise DataError("a shard is missing")
    except DataError:
        logging.getLogger("prefect.flow_runs").exception("as Prefect logs it")
        raise
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: a shard is missing\n")


def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry.PREFECT_API_URL, "value", lambda: "nonsense")
    with pytest.raises(ServiceError, match="nonsense"):
        entry.check_prefect()


def test_a_step_notes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(entry.TIMINGS, str(tmp_path / "timings"))
    monkeypatch.setenv("DVC_STAGE", "train@palette")
    assert entry.step(lambda params, variant: f"{params.seed} {variant}", str(ROOT / "params.yaml"), "palette")
    table = time_table(tmp_path / "timings", 100.0)
    assert "train@palette" in table
    assert "around them (100%)" in table


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with the profiles and without any data."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    PARAMS.write_text("before")
    return tmp_path


def test_profiles_take_the_place_of_the_params(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'ffhq46'; there are .*ffhq64"):
        use_profile("ffhq46")
    assert PARAMS.read_text() == "before"
    (project / "data/ffhq64").mkdir(parents=True)
    use_profile("ffhq64")
    assert PARAMS.read_text() == (ROOT / "profiles/ffhq64.yaml").read_text()


@pytest.mark.usefixtures("project")
def test_a_profile_without_its_dataset_leaves_the_params_alone() -> None:
    with pytest.raises(DataError, match=r"data/ffhq64 does not exist: .*build_dataset"):
        use_profile("ffhq64")
    assert PARAMS.read_text() == "before"


def test_a_dataset_that_dvc_can_bring_is_not_missing(project: Path) -> None:
    params = load_params(ROOT / "profiles/ffhq64.yaml")
    (project / "data/ffhq64").mkdir(parents=True)
    (project / "data/ffhq64/manifest.json").write_text("{}")
    Repo().add("data")
    shutil.rmtree(project / "data")
    check_data(params)
    Path("data.dvc").unlink()
    with pytest.raises(DataError, match=r"data/ffhq64 does not exist"):
        check_data(params)
