"""A stranger's clone in miniature: the whole graph runs, registers a model, and then has nothing left to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "stage", "train@unconditional", "train@palette", "train@invfusion", "distill@mmse", "distill@nppc", "evaluate",
    "report", "register",
}  # fmt: skip


def small(params: dict) -> dict:
    """The default experiment, cut down to seconds."""
    params["train"] |= {"images": 320, "log_images": 64, "checkpoint_images": 320, "sample_grid_images": 320}
    for target in ("mmse", "nppc"):
        params["distill"][target] |= {"images": 64}
    params["evaluate"] |= {"n_images": 8, "n_unconditional": 8, "bootstrap_resamples": 20}
    params["evaluate"]["sampler"]["n_steps"] = 2
    params["report"]["gallery_images"] = 2
    return params


def edit(folder: Path, change) -> None:
    path = folder / "params.yaml"
    yaml = YAML()
    params = yaml.load(path.read_text())
    change(params)
    with path.open("w") as file:
        yaml.dump(params, file)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_API", "MLFLOW_TRACKING"))}
    environment |= {"PATH": path, "PREFECT_HOME": str(folder / ".prefect"), "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def stale(folder: Path) -> set[str]:
    return set(json.loads(run(folder, "-m", "dvc", "status", "--json").stdout))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    edit(folder, small)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@invalid"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "clone"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_whole_graph_runs_and_then_has_nothing_to_do(clone: Path) -> None:
    typo = (clone / "params.yaml").read_text()
    edit(clone, lambda p: p["train"].update({"warmup_image": 3}))
    refused = run(clone, "-m", "flows.reproduce")
    assert refused.returncode == 1
    assert "train.warmup_image: unknown key; did you mean 'warmup_images'?" in refused.stderr
    (clone / "params.yaml").write_text(typo)

    first = run(clone, "-m", "flows.reproduce")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert "models:/invfusion@" in first.stderr + first.stdout

    records = json.loads((clone / "reports/evaluation.json").read_text())
    keys = {"method", "degradation", "metric", "value", "low", "high", "n", "nfe", "measurements_sha256"}
    assert all(keys <= set(record) for record in records)
    assert {"invfusion", "palette", "mmse", "nppc"} <= {record["method"] for record in records}
    assert "<html" in (clone / "reports/index.html").read_text()
    store = mlflow.MlflowClient(tracking_uri=f"sqlite:///{clone}/mlflow.db")
    assert store.get_registered_model("invfusion").aliases.get("challenger") == "1"
    assert not subprocess.run(["pgrep", "-f", f"{clone}/.*server"], capture_output=True, check=False).stdout

    again = run(clone, "-m", "flows.reproduce")
    assert "nothing to do" in again.stdout + again.stderr

    assert stale(clone) == set()
    edit(clone, lambda p: p["register"]["gates"].update({"max_consistency_mse": 0.5}))
    assert stale(clone) == {"register"}
    edit(clone, lambda p: p["evaluate"].update({"n_images": 9}))
    assert stale(clone) == {"register", "evaluate"}
    edit(clone, lambda p: p["train"].update({"lr": 0.123}))
    assert {"train@unconditional", "train@palette", "train@invfusion"} <= stale(clone)
    assert "stage" not in stale(clone)
