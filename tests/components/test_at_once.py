"""Commands at once: in what order, how many, with how many threads, and what a failure does."""

import os
import sys
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pytest
import torch

from components import at_once, device
from components.at_once import run_at_once, trainings_at_once
from components.params import Params
from components.profiles import load_profile

PARAMS = load_profile("digits16")
# "a" starts two others, "x" and "y" need nothing, "all" needs everything; "a" is named last.
NEEDS = {"all": {"x", "y", "after-1", "after-2", "a"}, "x": (), "y": (), "after-1": {"a"}, "after-2": {"a"}, "a": ()}
# Notes when it begins and ends, and fails where its name says so.
RUN = """
import os, signal, sys, time
log, name = sys.argv[1:3]
def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {name} {os.environ.get('OMP_NUM_THREADS')}\\n")
def stop(*_):
    note("stop"); time.sleep(2); note("stopped"); sys.exit(1)
signal.signal(signal.SIGINT, stop)
note("begin"); time.sleep(60 if "long" in name else 0.6); note("end")
sys.exit(3 * ("bad" in name))
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def run(
    log: Path, names: Iterable[str], n: int, needs: Mapping[str, Collection[str]] = NEEDS, share_threads: bool = True
) -> int:
    commands = {name: [sys.executable, "-c", RUN, str(log), name] for name in names}
    return run_at_once(commands, needs, n, {**os.environ, "OMP_NUM_THREADS": "7"}, 60, share_threads=share_threads)


def events(log: Path) -> list[tuple[str, str]]:
    """(what, which), in time."""
    return [(what, name) for what, name, _ in map(str.split, log.read_text().splitlines())]


def begun(log: Path) -> list[str]:
    return [name for what, name in events(log) if what == "begin"]


def threads(log: Path) -> dict[str, str]:
    return {name: n for _, name, n in map(str.split, log.read_text().splitlines())}


class TestHowMany:
    def test_one_for_each_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        monkeypatch.setattr(at_once, "is_on_gpu", lambda name: False)
        counts = {n: trainings_at_once(with_processes(n), 3) for n in ("auto", 2, 8, 16)}
        assert counts == {"auto": 8, 2: 4, 8: 1, 16: 1}

    def test_one_for_each_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(at_once, "is_on_gpu", lambda name: True)
        assert {n: trainings_at_once(with_processes(n), 4) for n in ("auto", 2, 4)} == {"auto": 4, 2: 2, 4: 1}
        assert trainings_at_once(with_processes("auto"), 0) == 1


def with_processes(n: object) -> Params:
    return PARAMS.model_copy(update={"runtime": PARAMS.runtime.model_copy(update={"processes": n})})


def test_in_order_and_no_more_than_there_is_room_for(log: Path) -> None:
    assert run(log, NEEDS, 2) == 0
    running: set[str] = set()
    seen, ended = [], []
    for what, name in events(log):
        assert what == "end" or set(NEEDS[name]) <= set(ended)
        ended += [name] * (what == "end")
        running ^= {name}
        seen.append(len(running))
    assert max(seen) == 2
    assert set(ended) == set(NEEDS)
    assert "a" in begun(log)[:2], "what begins the longest chain goes first"


def test_those_that_run_together_share_the_threads(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: 12)
    assert run(log, ["a", "after-1", "after-2"], 12) == 0
    assert threads(log) == {"a": "12", "after-1": "6", "after-2": "6"}


def test_threads_are_left_alone_where_they_are_not_shared(log: Path) -> None:
    assert run(log, ["x", "y"], 2, share_threads=False) == 0
    assert set(threads(log).values()) == {"7"}


def test_after_a_failure_none_begins_and_the_others_end(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(log, ["good", "bad", "later", "after"], 2, {"after": {"bad"}}) == 3
    assert len(begun(log)) == 2
    assert "bad" in begun(log)
    assert len([what for what, _ in events(log) if what == "end"]) == 2
    assert "bad stopped with exit code 3" in caplog.text


def test_what_is_not_among_them_is_not_waited_for(log: Path) -> None:
    assert run(log, ["after-1", "after-2"], 2) == 0
    assert set(begun(log)) == {"after-1", "after-2"}


def test_all_are_stopped_at_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes two seconds to end: the second hears of it before the first has."""

    class Interrupted:
        @staticmethod
        def sleep(_: float) -> None:
            time.sleep(0.05)
            if log.exists() and len(begun(log)) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(at_once, "time", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(log, ["long-1", "long-2"], 2)
    assert [what for what, _ in events(log)] == ["begin", "begin", "stop", "stop", "stopped", "stopped"]
