"""Training that is killed, at any moment and however often, ends with the bytes of an undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fault_report import ROOT

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def run(*arguments: object, seconds: float = 1800) -> Any:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/unit/training")))
    done = subprocess.run(
        [sys.executable, str(HERE / "kill_training.py"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


CASES = [(0, 1), (4, 1), (0, 2), (4, 2)]


@pytest.mark.parametrize(("n_workers", "n_processes"), CASES)
def test_kills_at_random_moments(tmp_path: Path, full: bool, note: Any, n_workers: int, n_processes: int) -> None:
    if not full and (n_workers, n_processes) not in {(0, 1), (0, 2)}:
        pytest.skip("part of `make faults`")
    images, wanted = (480, 40) if full else (96, 3)
    outcome = run(tmp_path, images, n_workers, n_processes, wanted, 7)
    assert outcome["equal"]
    assert outcome["kills"] >= wanted
    what = f"SIGKILL of training at a random moment, {n_workers} loader workers, {n_processes} process(es)"
    note(what, outcome["kills"])


def test_kills_at_each_operation_of_checkpoints(tmp_path: Path, full: bool, note: Any) -> None:
    images, every = (72, 1) if full else (48, 4)
    outcome = run(tmp_path, images, 0, 1, "points", every)
    assert outcome["equal"]
    assert outcome["points"] > 20 // every
    note("SIGKILL of training at each file operation of its checkpoints and logs, in turn", outcome["points"])
