"""A stranger's clone in miniature: the whole graph runs, registers a model, and then has nothing left to do."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from ruamel.yaml import YAML

from components.profiles import profile_text

ROOT = Path(__file__).resolve().parents[2]
TRAIN = {"train@unconditional", "train@palette", "train@invfusion_g"}
DISTILL = {"distill@mmse"}
JUDGE = {"evaluate", "report", "register"}
METHODS = ["H_pinv y", "Palette", "InvFusion-G", "MMSE", "Unconditional"]

ODD = "a b ü 100% #1"

pytestmark = pytest.mark.slow


def small(params: dict) -> dict:
    """The default experiment, cut down to seconds: a model of each sort, a few families and methods."""
    params["train"] |= {"images": 128, "log_images": 64, "checkpoint_images": 128, "sample_grid_images": 128}
    params["train"] |= {"models": ["unconditional", "palette", "invfusion_g"], "distilled": {"mmse": "invfusion_g"}}
    params["recipes"]["mmse"] |= {"images": 64}
    params["evaluate"] |= {"n_images": 8, "n_unconditional": 8, "bootstrap_resamples": 10}
    params["evaluate"] |= {"methods": METHODS, "calibration_images": 4, "calibration_draws": 2}
    params["evaluate"]["families"] = params["evaluate"]["families"][:2]
    params["evaluate"]["sampler"]["n_steps"] = 2
    params["report"]["gallery_images"] = 2
    # Trainings that are ended after seconds are long by their settings, and would be compiled first.
    params["runtime"] |= {"processes": 1, "compile": False}
    return params


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / "params.yaml"
    yaml = YAML()
    params = yaml.load(path.read_text())
    change(params)
    with path.open("w") as file:
        yaml.dump(params, file)


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {"PATH": path, "PREFECT_HOME": str(folder / ".prefect"), "PYTHONPATH": str(folder)}
    # Two threads, whatever the caller has: trainings run side by side.
    return os.environ | here | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


def run(folder: Path, *command: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment(folder), input=said, capture_output=True, text=True, timeout=2400, check=False,
    )  # fmt: skip


def reproduce(folder: Path) -> str:
    """All that `make repro` says."""
    done = run(folder, "-m", "flows.reproduce")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    return said


def stale(folder: Path) -> set[str]:
    """What DVC would run; the first stage, which writes down what the others depend on, has run."""
    run(folder, "-m", "dvc", "repro", "identify")
    status = run(folder, "-m", "dvc", "status", "--json", "--with-deps", "dvc.yaml")
    return set(json.loads(status.stdout)) - {"identify"}


def left_behind(folder: Path) -> list[str]:
    """The processes that still carry the clone's environment."""
    mark = f"PREFECT_HOME={folder}/.prefect".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def make_clone(folder: Path) -> Path:
    """The project's files with small parameters, in a repository of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(profile_text("digits16"))
    edit(folder, small)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@invalid"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "clone"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name tools that speak in addresses may misread."""
    return make_clone(tmp_path_factory.mktemp("clone") / ODD)


@pytest.fixture(scope="module")
def killed(clone: Path) -> set[str]:
    """The files that a run killed in its first training left of DVC's and the trainer's state."""
    state = clone / "state/train/unconditional"
    with (clone / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--pull", "train@unconditional"],
            cwd=clone, env=environment(clone) | {"INVFUSION_JOB": "1"}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    while process.poll() is None and not state.exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (clone / "killed.log").read_text()[-3000:]
    (clone / "killed.log").unlink()
    return {path.name for path in (state, clone / "dvc.lock") if path.exists()}


@pytest.fixture(scope="module")
def first(clone: Path, killed: set[str]) -> str:
    """What the first run that is left alone says."""
    return reproduce(clone)


@pytest.fixture
def finished(clone: Path, first: str) -> Iterator[Path]:
    """The clone after its first run, and its parameters as they were once the test is over."""
    before = (clone / "params.yaml").read_text()
    yield clone
    (clone / "params.yaml").write_text(before)


def test_it_says_where_the_results_are(clone: Path, first: str) -> None:
    assert f"report            {clone}/reports/index.html" in first
    assert "models:/invfusion@" in first
    assert all(stage in first for stage in ("train@palette", "around them"))
    # Trainings run at once, and what another waits for goes first: DVC alone would do neither.
    begun = sorted(first.index(f"Running stage 'train@{model}'") for model in ("invfusion_g", "unconditional"))
    assert "Finished in state" not in first[slice(*begun)]
    assert begun[1] < first.index("Running stage 'train@palette'")
    assert "<html" in (clone / "reports/index.html").read_text()


def test_a_killed_run_goes_on_where_it_was(killed: set[str], first: str) -> None:
    """What each stage makes of it is tried stage by stage elsewhere; here, that DVC goes on without a hand."""
    assert killed == {"unconditional", "dvc.lock"}
    ran = [line.split("'")[1] for line in first.splitlines() if line.startswith("Running stage")]
    assert sorted(ran) == sorted(TRAIN | DISTILL | JUDGE)
    assert set(ran[-2:]) == {"report", "register"}


def test_the_evaluation_is_a_flat_list_of_records(finished: Path) -> None:
    records = json.loads((finished / "reports/evaluation.json").read_text())
    keys = {"method", "degradation", "metric", "value", "low", "high", "n", "nfe", "measurements_sha256"}
    assert all(keys <= set(record) for record in records)
    assert set(METHODS) <= {record["method"] for record in records}


def registered_version(folder: Path) -> int:
    uri = f"sqlite:///{folder}/mlflow.db"
    store = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    return int(store.get_registered_model("invfusion").aliases["challenger"])


def test_the_model_is_registered(finished: Path) -> None:
    assert registered_version(finished) == 1


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_no_process_is_left(finished: Path) -> None:
    assert left_behind(finished) == []


def test_only_the_lock_is_new_to_git(finished: Path) -> None:
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=finished, capture_output=True, text=True, check=True)
    assert changed.stdout.splitlines() == ["?? dvc.lock"]


def test_a_second_run_does_nothing(finished: Path) -> None:
    assert "Everything is up to date" in reproduce(finished)


def without_palette(params: Any) -> None:
    params["train"]["models"].remove("palette")
    params["evaluate"]["methods"] = [name for name in params["evaluate"]["methods"] if "Palette" not in name]


CHANGES: dict[str, tuple[Callable[[Any], Any], set[str]]] = {
    "seed": (lambda p: p.update(seed=1), TRAIN | DISTILL | JUDGE),
    "data": (lambda p: p["data"].update(name="other"), {"stage", "report", "register"}),
    "train": (lambda p: p["train"].update(lr=0.123), TRAIN),
    "models": (without_palette, {"evaluate"}),
    "recipe": (lambda p: p["recipes"]["mmse"].update(lr=0.123), {"distill@mmse"}),
    "another recipe": (lambda p: p["recipes"]["indi"].update(epsilon=0.5), set()),
    "degradation": (
        lambda p: p["degradation"].update(weights=[1, 1, 1, 1]),
        (TRAIN | DISTILL) - {"train@unconditional"} | {"report", "register"},
    ),
    "evaluate": (lambda p: p["evaluate"].update(n_images=9), {"evaluate", "report"}),
    "report": (lambda p: p["report"].update(gallery_images=3), {"evaluate", "report"}),
    "register": (lambda p: p["register"]["gates"].update(max_consistency_mse=0.5), {"register"}),
    "runtime": (lambda p: p["runtime"].update(workers=1), set()),
}
# {a file: what stands at its end, what is stale then}: a comment, a file that nobody imports, a sampler, a file that
# Python has compiled.
EDITS: dict[str, tuple[str, set[str]]] = {
    "invfusion/training/step.py": ("\n# A comment.\n", set()),
    "invfusion/samplers/unused.py": ("ADDED = 1\n", set()),
    "invfusion/samplers/deis.py": ("\nADDED = 1\n", {"evaluate"}),
    "invfusion/models/__pycache__/denoiser.cpython-300.pyc": ("compiled", set()),
}
# What `stale` asks two processes for, for one changed file after another. Each is looked at by a process that has
# imported none of the project's modules before.
STALE_FOR_EACH = """
import json, os, sys
from pathlib import Path
import torch
from dvc.repo import Repo

def look(name, text):
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    from components.params import load_params
    from flows.identify import identify
    identify(load_params())
    with Repo() as repo:
        print(json.dumps([*repo.status(targets=["dvc.yaml"], with_deps=True)]), flush=True)

for name, text in json.load(sys.stdin):
    path = Path(name)
    before = path.read_text() if path.exists() else None
    if not (child := os.fork()):
        look(name, text)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    path.unlink() if before is None else path.write_text(before)
    assert status == 0, name
"""


@pytest.fixture(scope="module")
def stale_by_change(clone: Path, first: str) -> dict[str, set[str]]:
    """{name of a change, or of an edited file: what is stale after it}."""
    path = clone / "params.yaml"
    before, texts = path.read_text(), []
    for change, _ in CHANGES.values():
        edit(clone, change)
        texts.append(("params.yaml", path.read_text()))
        path.write_text(before)
    for name, (added, _) in EDITS.items():
        texts.append((name, ((clone / name).read_text() if (clone / name).exists() else "") + added))
    done = run(clone, "-c", STALE_FOR_EACH, said=json.dumps(texts))
    assert done.returncode == 0, done.stderr[-3000:]
    found = map(json.loads, done.stdout.splitlines())
    return {name: {*stages} - {"identify"} for name, stages in zip([*CHANGES, *EDITS], found, strict=True)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_value_makes_stale_what_reads_it(stale_by_change: dict[str, set[str]], name: str) -> None:
    assert stale_by_change[name] == CHANGES[name][1]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_stale_what_it_changes(stale_by_change: dict[str, set[str]], name: str) -> None:
    assert stale_by_change[name] == EDITS[name][1]


GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@invalid"]


def others_clone(finished: Path, folder: Path, *, with_lock: bool) -> Path:
    """A clone that finds the results in the DVC remote, whose address is plain: of others DVC reads a part."""
    remote = finished.parent / "remote"
    if not remote.exists():
        for arguments in (["remote", "add", "--default", "shared", str(remote)], ["push", "--run-cache", "--quiet"]):
            done = run(finished, "-m", "dvc", *arguments)
            assert done.returncode == 0, done.stderr
        for arguments in (["add", "-A"], ["commit", "-qm", "the results"]):
            subprocess.run([*GIT, *arguments], cwd=finished, check=True)
    subprocess.run(["git", "clone", "-q", str(finished), str(folder)], check=True)
    if not with_lock:
        (folder / "dvc.lock").unlink()
    return folder


def results(folder: Path) -> dict[str, str]:
    """The lock's hashes of all outputs: what a third party would compare."""
    stages = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_a_second_clone_is_complete_after_a_pull(finished: Path, tmp_path: Path) -> None:
    second = others_clone(finished, tmp_path / "second", with_lock=True)
    pulled = run(second, "-m", "dvc", "pull", "--allow-missing")
    assert pulled.returncode == 0, pulled.stderr
    assert stale(second) == set()
    for name in ("reports/index.html", "reports/metrics.json", "artifacts/logs/palette.csv"):
        assert (second / name).read_bytes() == (finished / name).read_bytes()
    metrics = second / "reports/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text(), parse_float=lambda _: 0.0)))
    compared = run(second, "-m", "dvc", "metrics", "diff", "--json", "HEAD")
    changes = json.loads(compared.stdout)["reports/metrics.json"]
    assert changes
    assert all(change["old"] != change["new"] == 0 for change in changes.values())


def test_a_third_clone_finds_the_results_without_the_lock(finished: Path, tmp_path: Path) -> None:
    third = others_clone(finished, tmp_path / "third", with_lock=False)
    done = run(third, "-m", "dvc", "repro", "--pull", "--quiet", "evaluate", "report")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (third / "state/train").exists()
    ours = results(finished)
    assert {name: ours[name] for name in results(third)} == results(third)


def test_a_lost_registry_is_rebuilt(finished: Path) -> None:
    (finished / "mlflow.db").unlink()
    shutil.rmtree(finished / "mlartifacts")
    said = reproduce(finished)
    assert "registering it again" in said
    assert "flows.report" not in said
    assert registered_version(finished) == 1


def test_plain_dvc_repro_needs_no_server_and_leaves_none(finished: Path) -> None:
    edit(finished, lambda p: p["register"]["gates"].update(max_consistency_mse=0.5))
    done = run(finished, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stderr[-3000:]
    assert stale(finished) == set()
    assert left_behind(finished) == []


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("evaluate", "split", "evaluate.splitt: unknown key; did you mean 'split'?"),
        # Of the three keys that dvc.yaml itself is made of, DVC speaks before it starts any stage.
        ("train", "models", "Could not find 'train.models'"),
    ],
)
def test_plain_dvc_repro_names_a_misspelt_key(finished: Path, section: str, key: str, message: str) -> None:
    edit(finished, lambda p: p[section].update({f"{key}{key[-1]}": p[section].pop(key)}))
    done = run(finished, "-m", "dvc", "repro")
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if section == "train":
        again = run(finished, "-m", "flows.reproduce")
        assert "train.modelss: unknown key; did you mean 'models'?" in again.stderr


PLUGIN = """
from typing import Literal
from invfusion.degradations import FAMILIES
from invfusion.degradations.matrix import RandomMatrix

@FAMILIES.register
class MyMatrix(RandomMatrix):
    kind: Literal["my_matrix"] = "my_matrix"
"""


def use_plugin(params: Any) -> None:
    params["plugins"] = ["my_ops"]
    params["evaluate"]["families"].append({"kind": "my_matrix"})


def test_an_edit_of_a_plugin_is_seen(clone: Path) -> None:
    """By plain DVC, and by what `make repro` asks first."""
    before, identity, plugin = (clone / "params.yaml").read_text(), clone / "artifacts/identity", clone / "my_ops.py"
    found = []
    plain, ours = ("-m", "dvc", "repro", "identify"), ("-c", "from flows.reproduce import stale; stale([])")
    try:
        edit(clone, use_plugin)
        for command, text in ((plain, ""), (plain, "ADDED = 1\n"), (ours, "ADDED = 2\n")):
            plugin.write_text(f"{PLUGIN}\n{text}")
            done = run(clone, *command)
            assert done.returncode == 0, done.stderr[-3000:]
            found.append({path.stem: path.read_text() for path in identity.glob("*.json")})
    finally:
        (clone / "params.yaml").write_text(before)
        plugin.unlink()
    for old, new in itertools.pairwise(found):
        assert {name for name in old if old[name] != new[name]} == {"evaluate"}
