"""Three clones on one machine act as three hosts, which share nothing but git and the DVC remote."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The pipeline's shape: models that are trained apart, and a judgement over all of them. What a stage makes tells when.
GRAPH = """
stages:
  train:
    matrix:
      model: [a, b]
    cmd: python train.py ${item.model}
    deps: [train.py]
    params: [lr]
    outs:
      - artifacts/models/${item.model}
    plots:
      - artifacts/logs/${item.model}.csv: {x: nimg, y: loss}
  evaluate:
    cmd: python evaluate.py
    deps: [evaluate.py, artifacts/models]
    outs: [artifacts/evaluation]
    metrics: [metrics.json]
"""
TRAIN = """
import pathlib, sys, time, yaml
name = sys.argv[1]
for folder in ("models", "logs"):
    pathlib.Path("artifacts", folder).mkdir(parents=True, exist_ok=True)
lr = yaml.safe_load(open("params.yaml"))["lr"]
pathlib.Path("artifacts/models", name).write_text(f"{name} {lr} {time.time_ns()}")
pathlib.Path("artifacts/logs", f"{name}.csv").write_text(f"nimg,loss\\n1,{lr}\\n2,{lr / 2}\\n")
"""
EVALUATE = """
import json, pathlib, time
models = sorted(pathlib.Path("artifacts/models").iterdir())
pathlib.Path("artifacts/evaluation").write_text(str(time.time_ns()))
score = sum(float(path.read_text().split()[1]) for path in models)
pathlib.Path("metrics.json").write_text(json.dumps({"score": score}))
"""
DVC = [sys.executable, "-m", "dvc"]
GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@invalid"]


def run(folder: Path, *command: str) -> str:
    # Of each host its own: DVC keeps notes about its working copies there.
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(folder / ".dvc/tmp/site")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("three")
    origin = folder / "origin"
    origin.mkdir()
    run(origin, *GIT, "init", "-q", "-b", "main")
    run(origin, *DVC, "init", "-q")
    config = f"[core]\n    analytics = false\n    remote = shared\n['remote \"shared\"']\n    url = {folder}/remote\n"
    files = {".dvc/config": config, "dvc.yaml": GRAPH, "train.py": TRAIN, "evaluate.py": EVALUATE}
    files |= {"params.yaml": "lr: 0.5\n", ".gitignore": "/artifacts\n/metrics.json\n"}
    for name, text in files.items():
        (origin / name).write_text(text)
    for arguments in (["add", "-A"], ["commit", "-qm", "the project"], ["checkout", "-q", "--detach"]):
        run(origin, *GIT, *arguments)
    clones = [folder / name for name in ("one", "two", "three")]
    for clone in clones:
        run(folder, "git", "clone", "-q", "-b", "main", str(origin), str(clone))
    return clones


def results(host: Path) -> dict[str, str]:
    files = [*(host / "artifacts").rglob("*"), host / "metrics.json", host / "dvc.lock"]
    return {str(path.relative_to(host)): path.read_text() for path in files if path.is_file()}


def test_three_hosts_end_with_equal_results_and_one_lock(hosts: list[Path]) -> None:
    one, two, three = hosts

    def train(host: Path, model: str) -> None:
        run(host, *DVC, "repro", "--pull", f"train@{model}")
        run(host, *DVC, "push", "--run-cache")

    # Two train side by side; the third judges what both made, without any lock.
    with ThreadPoolExecutor() as pool:
        list(pool.map(train, (one, two), ("a", "b")))
    said = run(three, *DVC, "repro", "--pull")
    assert said.count("is cached - skipping run") == 2
    assert "> python evaluate.py" in said
    run(three, *DVC, "push", "--run-cache")
    # The first goes on by itself and finds the same; the second takes the lock that the third hands over.
    assert run(one, *DVC, "repro", "--pull").count("is cached - skipping run") == 2
    for arguments in (["add", "dvc.lock"], ["commit", "-qm", "the results"], ["push", "-q"]):
        run(three, *GIT, *arguments)
    (two / "dvc.lock").unlink()
    run(two, *GIT, "pull", "-q")
    run(two, *DVC, "pull")
    assert results(one) == results(two) == results(three)
    for host in hosts:
        assert run(host, *DVC, "status", "--json").strip() == "{}"


def test_revisions_are_compared_on_any_host(hosts: list[Path]) -> None:
    two = hosts[1]
    (two / "params.yaml").write_text("lr: 0.25\n")
    run(two, *DVC, "repro")
    metrics = json.loads(run(two, *DVC, "metrics", "diff", "--json"))
    assert metrics["metrics.json"]["score"] == {"old": 1.0, "new": 0.5, "diff": -0.5}
    shown = json.loads(run(two, *DVC, "exp", "show", "--json"))
    scores = {each["rev"]: each["data"]["metrics"]["metrics.json"]["data"]["score"] for each in shown}
    assert set(scores.values()) == {1.0, 0.5}
    plots = json.loads(run(two, *DVC, "plots", "diff", "HEAD", "--json"))["data"]
    points = plots["artifacts/logs/a.csv"][0]["content"]["data"]["values"]
    assert {(point["rev"], point["loss"]) for point in points} >= {("HEAD", "0.5"), ("workspace", "0.25")}
