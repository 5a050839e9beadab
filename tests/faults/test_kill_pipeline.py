"""The whole pipeline, killed with all that it has started at random moments, ends with an undisturbed run's results."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from site_in_miniature import Site, make_clone, wait_for

# The ordinary run of the tests kills each stage's work (test_kill_training, test_evaluate, test_build) and DVC once
# (test_reproduce).
pytestmark = [pytest.mark.slow, pytest.mark.full_size]

KILLS = 20


def results(folder: Path) -> dict[str, str]:
    """Every published file but the manifests' git revision and the curves' speed."""
    wanted = ["artifacts/models/*/model.safetensors", "artifacts/logs/*.csv", "reports/evaluation.json"]
    wanted += ["artifacts/staged/**/*.npy", "reports/metrics.json", "reports/registration.json"]
    files = sorted(path for pattern in wanted for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(place: Site) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "dvc", "repro", "--pull"]
    environment = place.environment | {"INVFUSION_JOB": "1", "INVFUSION_SLOTS": ""}
    with (place.folder / "repro.log").open("a") as log:
        return subprocess.Popen(
            command, cwd=place.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def stages_begun(place: Site) -> int:
    return (place.folder / "repro.log").read_text().count("Running stage")


def kill(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_pipeline_survives_kills_at_random_moments(tmp_path: Path, note: Any) -> None:
    reference, killed = (Site(make_clone(tmp_path / name)) for name in ("reference", "killed"))
    begun = time.monotonic()
    assert start(reference).wait() == 0, (reference.folder / "repro.log").read_text()[-3000:]
    whole = time.monotonic() - begun
    draw, n_kills, stages = random.Random(3), 0, set()
    while True:
        process = start(killed)
        # Half of the attempts may finish a stage first, so that kills come in all of them.
        if n_kills < KILLS and draw.random() < 0.5:
            before = stages_begun(killed)
            while process.poll() is None and stages_begun(killed) < before + 2:
                time.sleep(0.05)
        limit = time.monotonic() + (draw.uniform(0, whole / 8) if n_kills < KILLS else 10 * whole)
        while process.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        if process.poll() is not None:
            assert process.returncode == 0, (killed.folder / "repro.log").read_text()[-3000:]
            break
        running = [p.environ().get("DVC_STAGE") for p in killed.processes("-m") if "DVC_STAGE" in p.environ()]
        stages |= set(filter(None, running))
        kill(process)
        n_kills += 1
        wait_for(lambda: not killed.processes(), 30, "all of it is gone")
    assert results(killed.folder) == results(reference.folder)
    assert n_kills > 0
    note(f"kill -9 of the whole pipeline at a random moment ({len(stages)} different stages were hit)", n_kills)
