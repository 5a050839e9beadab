"""Every flow's command line: what is wrong is said in one line, before any work."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dvc.repo import Repo

from components.params import load_params
from components.profiles import load_profile, merged, profile_text, round_trip, written
from flows import entry
from flows.reproduce import PARAMS, check_data, time_table, use_profile
from invfusion.errors import ConfigError, DataError, ServiceError

ROOT = Path(__file__).resolve().parents[2]
BEFORE = profile_text("digits16")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_typo_is_named_before_any_work(tmp_path: Path) -> None:
    text = profile_text("digits16").replace("warmup_images:", "warmup_image:", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    command = [sys.executable, "-m", "flows.step", "train", "--model", "palette", "--params", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "train.warmup_image: unknown key; did you mean 'warmup_images'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_prefect_server_is_named(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/api"
    done = subprocess.run(
        [sys.executable, "-m", "flows.step", "stage"],
        cwd=ROOT, env=os.environ | {"PREFECT_API_URL": url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: no Prefect server answers at PREFECT_API_URL={url}")
    assert done.stderr.count("\n") == 1


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
    monkeypatch.setattr(entry, "prefect_url", lambda: "nonsense")
    with pytest.raises(ServiceError, match="nonsense"):
        entry.check_prefect()


def server(listening: socket.socket, silences: int) -> None:
    """Answers an HTTP request with 200 after so many that it left without an answer, each held until it is given up."""
    for attempt in range(min(silences + 1, entry.SILENCES)):
        connection, _ = listening.accept()
        with connection:
            connection.recv(1024)
            if attempt == silences:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.recv(1024)


@pytest.mark.parametrize("silences", [1, entry.SILENCES])
def test_a_busy_prefect_server_is_waited_for(silences: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "SERVER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        monkeypatch.setattr(entry, "prefect_url", lambda: url)
        threading.Thread(target=server, args=(listening, silences), daemon=True).start()
        if silences < entry.SILENCES:
            entry.check_prefect()
        else:
            with pytest.raises(ServiceError, match=f"{url} takes connections and has not answered for 3"):
                entry.check_prefect()


def test_a_step_notes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(entry.TIMINGS, str(tmp_path / "timings"))
    monkeypatch.setenv("DVC_STAGE", "mine")
    (tmp_path / "params.yaml").write_text(profile_text("digits16"))
    assert entry.step(lambda params, variant: f"{params.seed} {variant}", str(tmp_path / "params.yaml"), "palette")
    table = time_table(tmp_path / "timings", 100.0)
    assert "mine" in table
    assert "around them (100%)" in table


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC repository with the default parameters and without any data."""
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    PARAMS.write_text(BEFORE)
    return tmp_path


def test_profiles_take_the_place_of_the_params(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'ffhq46'; did you mean 'ffhq64'"):
        use_profile("ffhq46")
    assert PARAMS.read_text() == BEFORE
    (project / "data/ffhq64").mkdir(parents=True)
    use_profile("ffhq64")
    assert load_params(PARAMS) == load_profile("ffhq64")


def test_a_profile_that_would_lose_edits_is_refused_with_their_names(project: Path) -> None:
    (project / "data/ffhq64").mkdir(parents=True)
    changes = {"train": {"lr": 0.25}, "evaluate": {"guidance": 3.0}, "methods": {"Mine": {"model": "palette"}}}
    mine = written(merged(round_trip().load(BEFORE), changes))
    PARAMS.write_text(mine)
    with pytest.raises(ConfigError) as refusal:
        use_profile("ffhq64")
    for line in ("train.lr: 0.002 -> 0.25", "evaluate.guidance: 1.0 -> 3.0", "methods.Mine.model: absent -> palette"):
        assert line in str(refusal.value)
    assert "--discard-edits" in str(refusal.value)
    assert str(refusal.value).count("->") == 3
    assert PARAMS.read_text() == mine
    use_profile("ffhq64", discard_edits=True)
    assert load_params(PARAMS) == load_profile("ffhq64")


def test_an_edit_that_the_profile_makes_too_is_not_lost(project: Path) -> None:
    (project / "data/ffhq64").mkdir(parents=True)
    PARAMS.write_text(written(merged(round_trip().load(BEFORE), {"train": {"precision": "fp16"}})))
    use_profile("ffhq64")
    assert load_params(PARAMS) == load_profile("ffhq64")


@pytest.mark.usefixtures("project")
def test_a_profile_without_its_dataset_leaves_the_params_alone() -> None:
    with pytest.raises(DataError, match=r"data/ffhq64 does not exist: .*build_dataset"):
        use_profile("ffhq64")
    assert PARAMS.read_text() == BEFORE


def test_a_dataset_that_dvc_can_bring_is_not_missing(project: Path) -> None:
    params = load_profile("ffhq64")
    (project / "data/ffhq64").mkdir(parents=True)
    (project / "data/ffhq64/manifest.json").write_text("{}")
    Repo().add("data")
    shutil.rmtree(project / "data")
    check_data(params)
    Path("data.dvc").unlink()
    with pytest.raises(DataError, match=r"data/ffhq64 does not exist"):
        check_data(params)
