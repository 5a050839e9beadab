"""Training on two nodes, as two torchruns under gloo, and going on with another number of processes."""

import csv
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_report import IS_FULL
from site_in_miniature import Site, free_port, make_clone, wait_for
from test_reproduce import edit

pytestmark = [pytest.mark.full_size, pytest.mark.slow]


def prepare(folder: Path) -> Site:
    if not IS_FULL:
        pytest.skip("part of `make faults`")
    place = Site(make_clone(folder))
    edit(folder, lambda params: params["train"].update(images=320, micro_batch_size=16, checkpoint_images=64))
    place.run("-m", "dvc", "repro", "--pull", "stage", INVFUSION_JOB="1")
    return place


def nodes(place: Site, count: int) -> list["subprocess.Popen[bytes]"]:
    port = free_port()
    started = []
    for rank in range(count):
        where = ["--nnodes", str(count), "--node-rank", str(rank), "--nproc-per-node", "1"]
        torchrun = ["-m", "torch.distributed.run", *where, "--master-addr", "127.0.0.1", "--master-port", port]
        command = [sys.executable, *torchrun, "-m", "components.training.train", "--model", "palette"]
        started.append(subprocess.Popen(command, cwd=place.folder, env=place.environment))
    return started


def losses(place: Site) -> list[float]:
    with (place.folder / "artifacts/logs/palette.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_nodes_and_a_change_of_their_number(tmp_path: Path, note: Any) -> None:
    alone, together, changed = (prepare(tmp_path / name) for name in ("alone", "together", "changed"))
    alone.run("-m", "components.training.train", "--model", "palette")
    assert [node.wait(timeout=300) for node in nodes(together, 2)] == [0, 0]
    assert losses(together) == pytest.approx(losses(alone), rel=1e-3)
    both = nodes(changed, 2)
    wait_for(lambda: changed.trained("palette") > 0, 120, "a checkpoint of two nodes")
    for node in both:
        node.send_signal(signal.SIGTERM)
    for node in both:
        node.wait(timeout=60)
    changed.run("-m", "components.training.train", "--model", "palette")
    assert losses(changed) == pytest.approx(losses(alone), rel=1e-3)
    note("training on two nodes (torchrun, gloo), then continued by one process", 2, "nothing but rounding")
    edit(changed.folder, lambda params: params.update(runtime={"processes": 3}))
    refused = subprocess.run(
        [sys.executable, "-m", "components.training.train", "--model", "palette"],
        cwd=changed.folder, env=changed.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "cannot be shared evenly by 3 processes" in refused.stderr
    note("a number of processes that cannot share a batch", 1, "nothing: refused before anything starts")
