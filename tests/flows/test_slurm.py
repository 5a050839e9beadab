"""The script for Slurm does what it should, with stand-ins for Slurm and for what it starts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/slurm.sh"
# One task on each node, as srun starts them; a signal reaches them all.
SRUN = """echo $$ > srun.pid
trap 'kill -TERM $(jobs -p)' TERM
shift
for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" & done
wait -n; code=$?; wait; exit $code"""
NOTE = 'echo "$(basename "$0") $*" >> calls'

TORCHRUN = f"""{NOTE}
trap 'kill %1; echo stopped >> calls; exit 1' TERM
sleep ${{TRAINS:-0}} & wait
exit ${{CODE:-0}}"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    tools = {
        "dvc": f'{NOTE}; [ "$1" != stage ] || printf "train@palette\\ndistill@mmse\\n"',
        "python": NOTE,
        "scontrol": f'{NOTE}; [ "$1" = requeue ] || printf "node-a\\nnode-b\\n"',
        "scancel": f"{NOTE}; kill -TERM $(cat srun.pid)",
        "srun": SRUN,
        "torchrun": TORCHRUN,
    }
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in tools.items():
        tool = tmp_path / ".venv/bin" / name
        tool.write_text(f"#!/bin/bash\n{text}\n")
        tool.chmod(0o755)
    return tmp_path


def submit(cluster: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    job = {"SLURM_SUBMIT_DIR": str(cluster), "SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4"}
    job |= {"SLURM_JOB_NODELIST": "node-[a-b]"}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments], env={**os.environ, **job, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def calls(cluster: Path) -> list[str]:
    return (cluster / "calls").read_text().splitlines()


def test_each_node_trains_and_the_results_are_dvcs(cluster: Path) -> None:
    assert submit(cluster, "mmse").wait(10) == 0
    trainings = sorted(call for call in calls(cluster) if call.startswith("torchrun"))
    where = "--nproc-per-node=4 --master-addr=node-a --master-port=20007 -m components.training.train --model mmse"
    assert trainings == [f"torchrun --nnodes=2 --node-rank={rank} {where}" for rank in (0, 1)]
    assert calls(cluster)[1] == "python -m flows.reproduce stage"
    assert calls(cluster)[-1] == "dvc commit --force distill@mmse"


def test_a_job_whose_time_is_over_goes_on_later(cluster: Path) -> None:
    job = submit(cluster, "palette", TRAINS="60")
    while not (cluster / "calls").exists() or sum(call.startswith("torchrun") for call in calls(cluster)) < 2:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.wait(10)
    assert calls(cluster)[-4:] == ["scancel --signal=TERM 7.0", "stopped", "stopped", "scontrol requeue 7"]


def test_what_fails_is_not_committed(cluster: Path) -> None:
    assert submit(cluster, "palette", CODE="3").wait(10) != 0
    assert not any("commit" in call for call in calls(cluster))
    unknown = submit(cluster, "pallete")
    assert "does not train 'pallete'" in unknown.communicate(timeout=10)[0]
    assert unknown.returncode == 1
