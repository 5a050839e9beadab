"""DVC and MLflow keep what they have in an S3 store: a local one from a package."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("dvc_s3", reason="pip install -c constraints.txt -e '.[servers]'")
boto3 = pytest.importorskip("boto3", reason="pip install -c constraints.txt -e '.[servers]'")
server = pytest.importorskip("moto.server", reason="pip install -c constraints.txt 'moto[s3]'")

pytestmark = pytest.mark.slow

GRAPH = """
stages:
  make:
    cmd: python -c "import time; open('made.txt', 'w').write(str(time.time()))"
    deps: [from.txt]
    outs: [made.txt]
"""


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of a store with a bucket."""
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    address = "http://{}:{}".format(*running.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys | {"AWS_ENDPOINT_URL": address, "MLFLOW_S3_ENDPOINT_URL": address})
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield address
    running.stop()


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("store")
def test_another_host_finds_the_results_without_the_lock(tmp_path: Path) -> None:
    dvc, git = [sys.executable, "-m", "dvc"], ["git", "-c", "user.name=test", "-c", "user.email=test@invalid"]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    run(here, *git, "init", "-q")
    run(here, *dvc, "init", "-q")
    (here / ".dvc/config").write_text("[core]\n    remote = shared\n['remote \"shared\"']\n    url = s3://bucket/dvc\n")
    (here / "dvc.yaml").write_text(GRAPH)
    (here / "from.txt").touch()
    (here / ".gitignore").write_text("/made.txt\n")
    for arguments in (["add", "-A"], ["commit", "-qm", "one"]):
        run(here, *git, *arguments)
    run(here, *dvc, "repro", "-q")
    run(here, *dvc, "push", "-q", "--run-cache")
    run(tmp_path, "git", "clone", "-q", str(here), str(there))
    assert "is cached - skipping run" in run(there, *dvc, "repro", "--pull")
    assert (there / "made.txt").read_text() == (here / "made.txt").read_text()


@pytest.mark.usefixtures("store")
def test_mlflow_keeps_files_there(tmp_path: Path) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    (tmp_path / "model.txt").write_text("weights")
    # As its server does with --artifacts-destination.
    get_artifact_repository("s3://bucket/mlflow").log_artifact(str(tmp_path / "model.txt"), "model")
    found = get_artifact_repository("s3://bucket/mlflow").download_artifacts("model/model.txt", str(tmp_path))
    assert Path(found).read_text() == "weights"
