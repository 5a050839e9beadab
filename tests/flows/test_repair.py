"""What a kill has left of DVC's own files does not keep the next run from starting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.lock import make_lock

from flows.repair import IN_USE, STATE, repair

WHOLE = """schema: '2.0'
stages:
  stage:
    cmd: python -m flows.step stage
    deps:
    - path: components/data/stage.py
      hash: md5
      md5: 6fd0d1e0b1b0d5a3e0b4c0e6b0e6d0a1
      size: 1234
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    STATE.mkdir(parents=True)
    Path("oracle").mkdir()


@pytest.mark.parametrize("content", ["", '{"write": {"/da'])
def test_a_list_of_used_paths_that_was_cut_is_removed(content: str) -> None:
    IN_USE.write_text(content)
    repair()
    assert not IN_USE.exists()


def test_a_whole_one_stays() -> None:
    IN_USE.write_text(json.dumps({"write": {}, "read": {}}))
    repair()
    assert IN_USE.exists()


def test_one_that_dvc_is_writing_stays() -> None:
    IN_USE.write_text("")
    hold = (
        "import sys; from dvc.lock import make_lock; lock = make_lock(sys.argv[1]); "
        "lock.lock(); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, f"{IN_USE}.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        repair()
        assert IN_USE.exists()
        holder.communicate("\n")
    repair()
    assert not IN_USE.exists()


@pytest.mark.parametrize("name", ["dvc.lock", "oracle/dvc.lock"])
@pytest.mark.parametrize("cut", [WHOLE.index("2.0") + 2, WHOLE.index("stage:") + 3, WHOLE.index("hash:") + 2])
def test_a_lockfile_that_was_cut_is_put_aside(name: str, cut: int) -> None:
    Path(name).write_text(WHOLE[:cut])
    repair()
    assert not Path(name).exists()
    assert Path(f"{name}.damaged").read_text() == WHOLE[:cut]


@pytest.mark.parametrize("content", ["", WHOLE])
def test_a_lockfile_that_dvc_can_read_stays(content: str) -> None:
    Path("dvc.lock").write_text(content)
    repair()
    assert Path("dvc.lock").read_text() == content


def test_locks_are_given_back() -> None:
    repair()
    make_lock(str(STATE / "lock")).lock()
