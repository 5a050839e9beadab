"""The units for systemd are valid, and start what `make up` starts."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.servers import prefect_command

UNITS = Path(__file__).resolve().parents[2] / "deploy/systemd"
PYTHON = "/srv/invfusion/.venv/bin/python"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_units_are_valid(tmp_path: Path) -> None:
    units = [tmp_path / path.name for path in UNITS.glob("*.service")]
    for unit in units:
        # It asks whether the commands are there.
        unit.write_text((UNITS / unit.name).read_text().replace(PYTHON, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "invfusion" in line]) == (0, [])


def test_they_start_the_same_servers() -> None:
    unit = (UNITS / "invfusion-prefect.service").read_text()
    assert f"ExecStart={' '.join([PYTHON, *prefect_command('127.0.0.1', 4200)[1:]])}\n" in unit
    assert f"ExecStart={PYTHON} -m flows.worker\n" in (UNITS / "invfusion-worker.service").read_text()
