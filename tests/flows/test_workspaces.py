"""Each job works in a copy of its own; what it was made from is noted as it was."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml

from components.params import load_params
from components.profiles import profile_text
from components.tracking.store import project
from flows import container, entry
from flows.dvc_runs import dvc_command, dvc_environment
from flows.identify import identity_of, text_of
from flows.stages import STAGES
from flows.workspaces import FOLDER, LOCK, VARIANTS, Wanted, working_copy, workspace
from invfusion.errors import ConfigError, ServiceError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
GRAPH = """
stages:
  make:
    cmd: cp params.yaml made.yaml
    params: [train.lr]
    outs: [made.yaml]
"""


@pytest.fixture(scope="module")
def project_of_one_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In which one file is edited and one is new."""
    folder = tmp_path_factory.mktemp("project")
    dvc = [sys.executable, "-m", "dvc"]
    remote = [*dvc, "remote", "add", "--quiet", "--default", "store", ".dvc/store"]
    for command in (["git", "init", "-q"], [*dvc, "init", "-q"], remote):
        subprocess.run(command, cwd=folder, check=True)
    write = {"params.yaml": profile_text("digits16"), "dvc.yaml": GRAPH, "a.txt": "old", "gone.txt": ""}
    write |= {".gitignore": "state/\n/made.yaml\n"}
    for name, text in write.items():
        (folder / name).write_text(text)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@invalid"]
    for arguments in (["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    (folder / "a.txt").write_text("new")
    (folder / "b.txt").write_text("new")
    (folder / "gone.txt").unlink()
    return folder


@pytest.fixture
def here(project_of_one_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project, to work in."""
    folder = shutil.copytree(project_of_one_stage, tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(folder / ".dvc/tmp/site"))
    monkeypatch.setattr(subprocess, "run", without_identify(subprocess.run))
    return folder


def without_identify(run: Callable[..., Any]) -> Callable[..., Any]:
    """What `identify` writes takes the whole project's code."""
    return lambda command, **options: None if "flows.identify" in command else run(command, **options)


def repro() -> None:
    subprocess.run(dvc_command(["--quiet"]), env=dvc_environment(), check=True)


def noted(folder: Path) -> Any:
    return load_yaml(str(folder / "dvc.lock"))["stages"]["make"]["params"]["params.yaml"]["train.lr"]


def faster(lr: float, **options: bool) -> Wanted:
    return Wanted(changes={"train": {"lr": lr}}, **options)


def test_a_workspace_is_the_project_as_it_is_now(here: Path) -> None:
    with workspace("one", Wanted()) as place:
        assert (place.folder / "a.txt").read_text() == Path("b.txt").read_text() == "new"
        assert not Path("gone.txt").exists()
        assert Path("state").resolve() == here / "state"
        assert project(Path.cwd()) == here
        repro()
        place.keep(Wanted())
    assert Path.cwd() == here
    assert (here / "made.yaml").exists()
    assert noted(here) == load_params(here / "params.yaml").train.lr
    status = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True, check=True)
    assert "up to date" in status.stdout
    left = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(left.splitlines()) == 1
    assert not any(path.is_dir() for path in FOLDER.iterdir())


def test_jobs_of_different_parameters_run_side_by_side(here: Path) -> None:
    before = (here / "params.yaml").read_text()
    with workspace("one", faster(0.5)) as one:
        with workspace_elsewhere(here, faster(0.25)) as two:
            for place in (one, two):
                subprocess.run(dvc_command(["--quiet"]), cwd=place.folder, env=dvc_environment(), check=True)
            assert (noted(one.folder), noted(two.folder)) == (0.5, 0.25)
            assert one.folder.joinpath("state").resolve() != two.folder.joinpath("state").resolve()
        one.keep(faster(0.5))  # not asked for
    assert (here / "params.yaml").read_text() == before
    assert not (here / "dvc.lock").exists()
    assert not any(path.is_dir() for path in VARIANTS.iterdir())
    with workspace("three", faster(0.5, keeps=True)) as place:
        assert (
            "'make' is cached - skipping run"
            in subprocess.run(dvc_command([]), env=dvc_environment(), capture_output=True, text=True, check=True).stdout
        )
        place.keep(faster(0.5, keeps=True))
    assert load_params(here / "params.yaml").train.lr == noted(here) == 0.5


def test_only_success_drops_the_training_states(here: Path) -> None:
    def fails() -> None:
        with workspace("one", faster(0.5)):
            Path("state/checkpoint").touch()
            raise ServiceError("a stage failed")

    with pytest.raises(ServiceError):
        fails()
    with workspace("two", faster(0.5)):
        assert Path("state/checkpoint").exists()
    assert not any(path.is_dir() for path in VARIANTS.iterdir())


def workspace_elsewhere(here: Path, wanted: Wanted) -> Any:
    os.chdir(here)
    return workspace("two", wanted)


def test_a_wrong_value_leaves_nothing(here: Path) -> None:
    before = (here / "params.yaml").read_text()
    for wrong in (Wanted(changes={"train": {"batch_size": 33}}), Wanted(profile="../../etc/passwd")):
        with pytest.raises(ConfigError, match=r"^(params\.yaml: .*wrong|unknown profile)"), workspace("one", wrong):
            pass
    assert (here / "params.yaml").read_text() == before
    assert not FOLDER.exists()
    assert list((here / "state").glob(".*")) == []


def test_what_a_killed_job_left_goes_with_the_next(here: Path) -> None:
    code = "import os; from flows.workspaces import *\nwith workspace('left', Wanted()): os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (FOLDER / "left").is_dir()
    with workspace("next", Wanted()):
        assert not (here / FOLDER / "left").exists()


def test_who_comes_second_waits_for_the_working_copy(here: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with working_copy("second"):
            order.append("second")

    with working_copy("first"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.5)
        order.append("first")
        assert "first (process" in LOCK.read_text()
    thread.join(10)
    assert order == ["first", "second"]


def test_parameters_that_change_under_a_stage_are_not_noted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "make")
    with pytest.raises(ConfigError, match=r"train\.lr changed while 'make' ran"), entry.unchanged("make"):
        Path("params.yaml").write_text(profile_text("digits16").replace("lr: 2.0e-3", "lr: 0.5", 1))
    with entry.unchanged("make"):
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace("gallery_images: ", "gallery_images: 1"))


def test_code_that_changed_since_the_run_began_is_not_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an edit between two stages of one run would have DVC note as made from the code before it."""
    params = load_params("params.yaml")
    monkeypatch.setenv("DVC_STAGE", "distill@mmse")
    identity = entry.IDENTITY / "train" / "mmse.json"
    identity.parent.mkdir(parents=True, exist_ok=True)
    identity.write_text(text_of(identity_of(params, STAGES["train"], "mmse")))
    ran: list[str] = []
    entry.step(lambda _, model: ran.append(model), "params.yaml", "mmse")
    identity.write_text(identity.read_text().replace('"lr": 0.0005', '"lr": 0.0004'))
    with pytest.raises(ConfigError, match=r"of 'distill@mmse' there changed after this run had begun: .*lr"):
        entry.step(lambda _, model: ran.append(model), "params.yaml", "mmse")
    identity.unlink()
    with pytest.raises(ConfigError, match=r"mmse\.json.* does not exist: run `dvc repro identify`"):
        entry.step(lambda _, model: ran.append(model), "params.yaml", "mmse")
    assert ran == ["mmse"]
    # Stages of somebody's own, of which nothing is written down.
    for stage in ("mine", "train_palette", "again@palette", "sweep@palette-0", "mine/dvc.yaml:evaluate"):
        monkeypatch.setenv("DVC_STAGE", stage)
        entry.step(lambda _, model: ran.append(model), "params.yaml", stage)
    assert len(ran) == 6


def test_what_a_host_pushes_another_finds_without_the_lock(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two containers do, fresh clones that share nothing but the DVC remote."""
    other, store = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("store")
    subprocess.run(["git", "clone", "-q", ".", str(other)], check=True)
    monkeypatch.setenv(container.REMOTE, str(store))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    for clone in (here, other):
        with contextlib.chdir(clone):
            container.prepare()
    with workspace("one", faster(0.5)) as place:
        repro()
        place.push()
    with contextlib.chdir(other), workspace("two", faster(0.5)) as place:
        command, environment = dvc_command([]), dvc_environment()
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert "'make' is cached - skipping run" in said
        shutil.rmtree(store)
        store.write_text("no folder")
        with pytest.raises(ServiceError, match="could not be pushed"):
            place.push()
