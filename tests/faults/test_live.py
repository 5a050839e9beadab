"""The real servers, worker and browser: what the UI starts, shows and cancels, and what survives when parts die."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fault_report import IS_FULL, ROOT
from site_in_miniature import Site, browse, free_port, make_clone, site, wait_for
from test_reproduce import edit

pytestmark = pytest.mark.slow

LONG = {"images": 2_000_000, "checkpoint_images": 640, "log_images": 64}
SHOWN = ("prefect-runs", "prefect-samples", "mlflow-model", "mlflow-history")
# What the UI's button sends: without the detail Prefect takes the run for one whose process waits.
SUSPENDED = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
SHORT = {"images": 320, "checkpoint_images": 320, "log_images": 64}
TRIES = 3 if IS_FULL else 1


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as place:
        # Every test finds the data staged, whichever of them run.
        place.run("-m", "dvc", "repro", "--pull", "stage", INVFUSION_JOB="1")
        yield place


@pytest.fixture(autouse=True)
def nothing_goes_on(here: Site) -> Iterator[None]:
    """What a failed test leaves running would take the slots of all tests after it."""
    yield
    here.end_jobs()


def test_jobs_of_differing_parameters_side_by_side_suspended_and_cancelled(here: Site) -> None:
    before, lock = ((here.folder / name).read_text() for name in ("params.yaml", "dvc.lock"))
    wrong = here.start("reproduce", settings={"train": {"batch_size": 33}})
    often = LONG | {"checkpoint_images": 128}
    runs = [here.start("train", model="palette", settings={"train": often | {"lr": lr}}) for lr in (0.002, 0.003)]
    folders = here.folder / "state/variants"
    found = "*/train/palette/checkpoint-*"
    wait_for(lambda: len({path.parent for path in folders.glob(found)}) == 2, 120, "both train")
    wait_for(lambda: here.state(wrong) == "FAILED", 60, "the wrong one is refused")
    assert [here.state(run) for run in runs] == ["RUNNING", "RUNNING"]
    assert (here.folder / "params.yaml").read_text() == before
    trained = {*folders.glob(found)}
    here.api("POST", f"/flow_runs/{runs[0]}/set_state", state=SUSPENDED)
    wait_for(lambda: len(here.processes("flows.step", "train")) == 1, 60, "the suspended training ends")
    here.cancel(runs[1])
    wait_for(lambda: not here.processes("flows.step", "train"), 60, "the cancelled training ends")
    wait_for(lambda: here.state(runs[1]) == "CANCELLED", 60, "cancelled")
    wait_for(lambda: here.state(runs[0]) == "PAUSED", 60, "suspended")
    here.cancel(runs[0])
    wait_for(lambda: here.state(runs[0]) == "CANCELLED", 100, "what is suspended can be cancelled")
    assert {*folders.glob(found)} - trained, "with newer checkpoints"
    wait_for(lambda: not workspaces(here), 100, "no workspace is left")
    assert (here.folder / "params.yaml").read_text() == before
    assert (here.folder / "dvc.lock").read_text() == lock
    shutil.rmtree(folders)  # the other tests look for the newest progress


def workspaces(here: Site) -> list[Any]:
    return [path for path in (here.folder / ".dvc/tmp/jobs").iterdir() if path.is_dir()]


def begin(here: Site, variant: str = "palette") -> str:
    """A long training that has made some steps."""
    before = here.progress(variant)
    run = here.start("train", model=variant, settings={"train": LONG})
    wait_for(lambda: here.state(run) == "RUNNING" and here.progress(variant) > before + 64, 120, "training runs")
    return run


def finish(here: Site, run: str) -> None:
    here.cancel(run)
    wait_for(lambda: here.state(run) == "CANCELLED", 60, "cancelled")


@pytest.mark.full_size
def test_a_run_of_the_ui_does_what_dvc_does(here: Site, note: Any) -> None:
    run = here.start("train", model="palette")
    wait_for(lambda: here.state(run) == "COMPLETED", 180, "a short training")
    assert {"palette-progress", "palette-status", "palette-samples"} <= set(here.artifacts(run))
    by_ui = (here.folder / "artifacts/models/palette/model.safetensors").read_bytes()
    assert json.loads(here.run("-m", "dvc", "status", "--json", "train@palette").strip().splitlines()[-1]) == {}
    here.run("-m", "dvc", "repro", "--force", "--single-item", "train@palette", INVFUSION_JOB="1")
    assert (here.folder / "artifacts/models/palette/model.safetensors").read_bytes() == by_ui
    note("a training started from the UI instead of by `dvc repro`", 1, "nothing: the same bytes")


@pytest.mark.full_size
@pytest.mark.parametrize(("name", "variable"), [("MLflow", "MLFLOW_TRACKING_URI"), ("Prefect", "PREFECT_API_URL")])
def test_a_server_that_is_down_at_the_start(here: Site, note: Any, name: str, variable: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    where = {"PREFECT_API_URL": f"http://127.0.0.1:{here.prefect}/api", variable: address}
    done = subprocess.run(
        [sys.executable, "-m", "flows.step", "train", "--model", "palette"],
        cwd=here.folder, env=here.environment | where, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert address in done.stderr
    assert "Traceback" not in done.stderr
    note(f"the {name} server down at the start", 1, "nothing: refused within a minute, with its address and the remedy")


def test_a_cancelled_run_ends_soon_with_a_checkpoint(here: Site, note: Any) -> None:
    slowest = 0.0
    for _ in range(TRIES):
        run, before = begin(here), here.trained("palette")
        start = time.monotonic()
        here.cancel(run)
        wait_for(lambda: not here.processes("flows.step", "train"), 15, "training ends")
        slowest = max(slowest, time.monotonic() - start)
        assert here.trained("palette") > before
        wait_for(lambda: here.state(run) == "CANCELLED", 30, "cancelled")  # noqa: B023
    note("a run cancelled from the UI", TRIES, f"nothing: a checkpoint within {slowest:.1f} s, no process left")


ONLY_FULL = pytest.mark.full_size


@pytest.mark.parametrize(
    "victims",
    [
        pytest.param("worker", marks=ONLY_FULL),
        pytest.param("run", marks=ONLY_FULL),
        "worker and run",
        pytest.param("all but the servers", marks=ONLY_FULL),
    ],
)
def test_what_is_killed_is_marked_as_crashed_and_resumed(here: Site, note: Any, victims: str) -> None:
    slowest = 0.0
    for _ in range(TRIES):
        run = begin(here)
        start = time.monotonic()
        doomed = here.processes("worker", "start") if "worker" in victims or "all" in victims else []
        doomed += here.processes("prefect.engine") if "run" in victims or "all" in victims else []
        doomed += [here.service("worker"), *here.processes("flows.step", "train")] if "all" in victims else []
        for process in doomed:
            process.kill()
        if "all" in victims:
            here.up()
        wait_for(lambda: here.state(run) == "CRASHED", 300, "marked as crashed")  # noqa: B023
        slowest = max(slowest, time.monotonic() - start)
        wait_for(lambda: not here.processes("flows.step", "train"), 30, "nothing is left")
        trained = here.trained("palette")
        again = begin(here)
        assert here.progress("palette") > trained > 0
        finish(here, again)
    note(f"kill -9 of {victims}", TRIES, f"nothing: crashed within {slowest:.0f} s, the next run went on")


def test_the_prefect_server_dies_in_mid_run(here: Site, note: Any) -> None:
    for _ in range(TRIES):
        run = begin(here)
        here.service("prefect").kill()
        before = here.progress("palette")
        wait_for(lambda: here.progress("palette") > before + 128, 60, "training goes on")  # noqa: B023
        here.up()
        wait_for(lambda: here.state(run) == "RUNNING", 30, "the server knows the run")  # noqa: B023
        finish(here, run)
    note("kill -9 of the Prefect server in mid-run", TRIES, "nothing: training went on, cancelling worked afterwards")


@pytest.mark.full_size
def test_the_mlflow_server_dies_in_mid_run(here: Site, note: Any) -> None:
    import mlflow

    address = f"http://127.0.0.1:{here.mlflow}"
    environment = here.environment | {"MLFLOW_TRACKING_URI": address, "INVFUSION_JOB": "1"}
    edit(here.folder, lambda params: params["train"].update(SHORT | {"images": 1280}))
    shutil.rmtree(here.folder / "state/train/unconditional", ignore_errors=True)
    command = ["-m", "flows.step", "train", "--model", "unconditional"]
    with (here.folder / "mlflow-outage.log").open("w") as output:
        training = subprocess.Popen([sys.executable, *command], cwd=here.folder, env=environment, stdout=output)
        wait_for(lambda: here.progress("unconditional") > 0, 60, "training begins")
        server = here.service("mlflow")
        for process in [server, *server.children(recursive=True)]:
            process.kill()
        assert training.wait(timeout=180) == 0
    here.up()
    here.run(*command, MLFLOW_TRACKING_URI=address, INVFUSION_JOB="1")
    client = mlflow.MlflowClient(address)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (first, *_) = [
        r for r in client.search_runs(experiments, order_by=["start_time ASC"])
        if r.info.run_name == "train-unconditional" and "loss" in r.data.metrics
    ]  # fmt: skip
    steps = [m.step for m in client.get_metric_history(first.info.run_id, "loss")]
    assert sorted(steps) == list(range(64, 1281, 64))
    note("kill -9 of the MLflow server in mid-run", 1, "nothing: each metric arrived once, after it was back")


@pytest.mark.full_size
def test_two_devices_three_jobs_and_the_pictures(here: Site, tmp_path: Path) -> None:
    reproduction = here.start("reproduce", settings={"train": SHORT})
    wait_for(lambda: here.state(reproduction) == "COMPLETED", 900, "the reproduction")
    assert {"results", "invfusion-g-progress"} <= set(here.artifacts(reproduction))
    promotion = here.start("promote", version=1, why="the first one", anyway=True)
    wait_for(lambda: here.state(promotion) in ("COMPLETED", "FAILED"), 120, "a promotion from the UI")
    runs = [here.start("train", model=v, settings={"train": LONG}) for v in ("palette", "invfusion_g", "unconditional")]
    wait_for(lambda: [here.state(r) for r in runs].count("RUNNING") == 2, 120, "two run")
    wait_for(lambda: len(lease_holders(here)) == 2, 120, "two train, each on a device of its own")
    waiting = next(r for r in runs if here.state(r) != "RUNNING")
    assert here.state(waiting) == "SCHEDULED"
    time.sleep(5)
    has_browser = shutil.which("chromium") is not None
    if has_browser:
        show(here, tmp_path, runs[0])
    here.cancel(waiting)
    for run in runs:
        if run != waiting:
            finish(here, run)
    if not has_browser:
        pytest.skip("there is no chromium here")


def lease_holders(here: Site) -> set[int]:
    """The training processes that hold a device."""
    notes = [path.read_text() for path in (here.folder / "leases").glob("[01].lock")]
    return {p.pid for p in here.processes("flows.step", "train") if any(f"(process {p.pid})" in note for note in notes)}


def show(here: Site, folder: Path, run: str) -> None:
    """Each page, once it says what it must; their pictures go to docs/ when everything is tried."""
    prefect, mlflow = f"http://127.0.0.1:{here.prefect}", f"http://127.0.0.1:{here.mlflow}"
    samples = here.api("POST", "/artifacts/filter", artifacts={"key": {"any_": ["invfusion-g-samples"]}})
    pages = {
        "prefect-runs": (f"{prefect}/runs", {"train-palette", "Running", "Scheduled|Late", "Completed"}),
        "prefect-run": (f"{prefect}/runs/flow-run/{run}", {"runs on device"}),
        "mlflow-model": (f"{mlflow}/#/models/invfusion", {"champion"}),
        "mlflow-history": (f"{mlflow}/#/models/invfusion-history", {"promoted"}),
        "prefect-samples": (f"{prefect}/artifacts/artifact/{samples[0]['id']}", {"newest samples of"}),
    }
    for name, (address, wanted) in pages.items():
        picture, height = folder / f"{name}.png", 1250 if name == "prefect-runs" else 900
        wait_for(partial(says, address, picture, height, wanted), 120, f"the page {name} says {wanted}")
        if name in SHOWN:
            shrink(picture, ROOT / "docs" / f"{name}.png")


def says(address: str, picture: Path, height: int, wanted: set[str]) -> bool:
    """Whether all of these words, or one of those between bars, stand on a page."""
    text = browse(address, picture, height)
    return all(any(word in text for word in words.split("|")) for words in wanted)


def shrink(source: Path, target: Path) -> None:
    from PIL import Image

    with Image.open(source) as image:
        image.convert("RGB").quantize(64).save(target, optimize=True)


@pytest.mark.full_size
def test_two_hosts_share_only_the_servers(here: Site, tmp_path_factory: pytest.TempPathFactory, note: Any) -> None:
    """A second working copy with a worker of its own takes jobs of the first one's server."""
    other = Site(make_clone(tmp_path_factory.mktemp("other")), here.prefect, here.mlflow)
    address = {
        "PREFECT_API_URL": f"http://127.0.0.1:{here.prefect}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{here.mlflow}",
    }
    blockers = [begin(here, "palette"), begin(here, "invfusion_g")]  # the first host is full now
    worker = subprocess.Popen(
        [sys.executable, "-m", "flows.worker"],
        cwd=other.folder,
        env=other.environment | address | {"INVFUSION_SLOTS": "0"},
    )
    try:
        wait_for(lambda: other.processes("worker", "start"), 60, "the second worker")
        run = here.start("train", model="unconditional")
        wait_for(lambda: here.state(run) == "COMPLETED", 240, "the second host's training")
        assert (other.folder / "artifacts/models/unconditional/model.safetensors").exists()
        for blocker in blockers:
            finish(here, blocker)
    finally:
        worker.terminate()
        assert worker.wait(timeout=60) == 143
    remote = tmp_path_factory.mktemp("remote")
    for place in (here, other):
        place.run("-m", "dvc", "remote", "add", "--force", "shared", str(remote))
    other.run("-m", "dvc", "push", "--remote", "shared", "train@unconditional")
    model = other.folder / "artifacts/models/unconditional/model.safetensors"
    shutil.copy(other.folder / "dvc.lock", here.folder / "dvc.lock")
    here.run("-m", "dvc", "pull", "--force", "--remote", "shared", "train@unconditional")
    assert (here.folder / "artifacts/models/unconditional/model.safetensors").read_bytes() == model.read_bytes()
    note("a second host with a working copy of its own, sharing the DVC remote and the servers", 1)
