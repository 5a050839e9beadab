"""One job per GPU: distinct devices, a queue in turn, and a lease that ends with its process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import leases
from invfusion.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
# Holds devices, says which, and waits to be ended.
JOB = """
import os, sys, time
from flows import leases
with leases.hold(int(sys.argv[1]), "job"):
    print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    if len(sys.argv) > 2:
        import subprocess
        print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list["subprocess.Popen[str]"]]:
    """A host with devices 0 and 1, and the jobs started on it."""
    monkeypatch.setenv(leases.SLOTS, "0,1")
    monkeypatch.setenv(leases.FOLDER, str(tmp_path / "leases"))
    jobs: list[subprocess.Popen[str]] = []
    yield jobs
    for job in jobs:
        job.kill()
        job.communicate()


def start(jobs: list["subprocess.Popen[str]"], *arguments: str) -> "subprocess.Popen[str]":
    job = subprocess.Popen([sys.executable, "-c", JOB, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    jobs.append(job)
    return job


def line(job: "subprocess.Popen[str]") -> str:
    assert job.stdout is not None
    return job.stdout.readline().strip()


def wait_until(condition: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("device", ["MIG-GPU-8f6f4c1e-0b5c/1/0", "MIG-5c89852c-d268-c3f3-1b07", "GPU-8f6f4c1e", "../0"])
def test_a_device_may_have_any_name(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leases.SLOTS, f"{device},1")
    monkeypatch.setenv(leases.FOLDER, str(tmp_path / "leases"))
    with leases.hold(1, "job") as held:
        assert held == [device]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == device
        assert list(leases.holders()) == [device]
    assert leases.holders() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["leases"]
    assert all((path.stat().st_mode & 0o777) == 0o666 for path in (tmp_path / "leases").iterdir())


def test_jobs_get_distinct_devices_and_the_next_one_waits(host: list["subprocess.Popen[str]"]) -> None:
    first, second = start(host, "1"), start(host, "1")
    assert {line(first), line(second)} == {"0", "1"}
    assert len(leases.holders()) == 2
    assert f"job (process {first.pid})" in leases.holders().values()
    third = start(host, "1")
    time.sleep(1)
    assert third.poll() is None
    first.send_signal(signal.SIGKILL)
    assert line(third) in {"0", "1"}


def test_a_job_for_all_devices_is_not_overtaken(host: list["subprocess.Popen[str]"]) -> None:
    first = start(host, "1")
    line(first)
    both = start(host, "2")
    wait_until(lambda: len(leases.holders()) == 2, 60)
    late = start(host, "1")
    time.sleep(1)
    first.kill()
    assert line(both) == "0,1"
    assert late.poll() is None
    both.kill()
    assert line(late) in {"0", "1"}


def test_waiters_are_served_in_turn(host: list["subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that wait, some are killed."""
    monkeypatch.setenv(leases.SLOTS, "0")
    first = start(host, "1")
    assert line(first) == "0"
    queue = Path(os.environ[leases.FOLDER])
    waiters = []
    for n in range(1, 5):
        waiters.append(start(host, "1"))
        wait_until(lambda: len([*queue.glob("ticket-*")]) == n, 60)  # noqa: B023
    waiters.pop(1).kill()
    first.kill()
    for job in waiters:
        assert line(job) == "0"
        job.kill()


def test_a_scheduler_lends_devices_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(leases.SLOTS, raising=False)
    monkeypatch.setenv(leases.VISIBLE, "2,3")
    for name in leases.SCHEDULERS:
        with monkeypatch.context() as scheduled:
            scheduled.setenv(name, "1")
            with leases.hold(2, "job") as held:
                assert (held, os.environ[leases.VISIBLE]) == ([], "2,3")


def test_a_lease_lasts_as_long_as_anybody_works_under_it(host: list["subprocess.Popen[str]"]) -> None:
    job = start(host, "2", "with a helper")
    assert line(job) == "0,1"
    helper = int(line(job))
    job.kill()
    job.wait()
    assert set(leases.holders()) == {"0", "1"}
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: not leases.holders())


def test_more_than_there_are_is_refused_at_once(host: object) -> None:
    with pytest.raises(ConfigError, match=r"train@palette asks for 3 devices and this host has 2 \(0, 1\)"):
        leases.hold(3, "train@palette").__enter__()


def test_the_environment_is_put_back(host: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leases.VISIBLE, "7")
    with leases.hold(1, "job") as held:
        assert os.environ[leases.VISIBLE] == held[0] == "0"
    assert os.environ[leases.VISIBLE] == "7"


def test_devices_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(leases.SLOTS, raising=False)
    monkeypatch.setenv(leases.VISIBLE, "2, 3")
    assert leases.slots() == ["2", "3"]
    monkeypatch.delenv(leases.VISIBLE)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA (UUID: a)'\necho '  MIG 1g: b'\necho 'GPU 1: NVIDIA (UUID: c)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert leases.slots() == ["0", "1"]


def test_a_host_without_devices_lends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leases.SLOTS, "")
    with leases.hold(2, "job") as held:
        assert held == []
