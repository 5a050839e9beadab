"""Real servers and a worker: jobs of differing parameters side by side, suspended, cancelled, refused."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from site_in_miniature import Site, site, wait_for

pytestmark = pytest.mark.slow

LONG = {"images": 2_000_000, "checkpoint_images": 128, "log_images": 64}
# What the UI's button sends: without the detail Prefect takes the run for one whose process waits.
SUSPENDED = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site")) as place:
        yield place


def test_jobs_of_differing_parameters_side_by_side_suspended_and_cancelled(here: Site) -> None:
    before = (here.folder / "params.yaml").read_text()
    wrong = here.start("reproduce", settings={"train": {"batch_size": 33}})
    runs = [here.start("train", model="palette", settings={"train": {**LONG, "lr": lr}}) for lr in (0.002, 0.003)]
    folders = here.folder / "state/variants"
    wait_for(lambda: len(list(folders.glob("*/train/palette/checkpoint-*"))) >= 2, 500, "both train")
    assert here.state(wrong) == "FAILED"
    assert [here.state(run) for run in runs] == ["RUNNING", "RUNNING"]
    assert (here.folder / "params.yaml").read_text() == before
    trained = {path: path.name for path in folders.glob("*/train/palette/checkpoint-*")}
    here.api("POST", f"/flow_runs/{runs[0]}/set_state", state=SUSPENDED)
    wait_for(lambda: len(here.processes("flows.step", "train")) == 1, 200, "the suspended training ends")
    here.cancel(runs[1])
    wait_for(lambda: not here.processes("flows.step", "train"), 200, "the cancelled training ends")
    wait_for(lambda: here.state(runs[1]) == "CANCELLED", 200, "cancelled")
    assert here.state(runs[0]) == "PAUSED"
    here.cancel(runs[0])
    wait_for(lambda: here.state(runs[0]) == "CANCELLED", 100, "what is suspended can be cancelled")
    assert {*folders.glob("*/train/palette/checkpoint-*")} - {*trained}, "with newer checkpoints"
    wait_for(lambda: not workspaces(here), 100, "no workspace is left")
    assert (here.folder / "params.yaml").read_text() == before
    assert not (here.folder / "dvc.lock").exists()


def workspaces(here: Site) -> list[Any]:
    return [path for path in (here.folder / ".dvc/tmp/jobs").iterdir() if path.is_dir()]
