"""Trainings at once: which, in what order, how many, and what a failure does."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from components.params import read_values
from components.profiles import load_profile
from flows import dvc_runs
from flows.dvc_runs import JUDGES, run_trainings, sources, stale_trainings, trainings_at_once
from flows.reproduce import time_table
from flows.stages import GRAPH

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_profile("digits16")
NEEDS = sources(PARAMS)
FRESH = {"train@unconditional", "train@palette", "train@invfusion", "train@invfusion_g"}
DISTILLED = {"distill@mmse", "distill@nppc"}
# What a run of DVC is in these tests: it notes when it begins and ends, and fails where its name says so.
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
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setattr(dvc_runs, "dvc_command", lambda words: [sys.executable, "-c", RUN, str(path), words[-1]])
    return path


def events(log: Path) -> list[tuple[str, str]]:
    """(what, which training), in time."""
    return [(what, name) for what, name, _ in map(str.split, log.read_text().splitlines())]


def begun(log: Path) -> list[str]:
    return [name for what, name in events(log) if what == "begin"]


def threads(log: Path) -> dict[str, str]:
    """Of each training."""
    return {name: n for _, name, n in map(str.split, log.read_text().splitlines())}


class TestWhich:
    def test_each_after_the_one_that_it_starts_from(self) -> None:
        assert dict.fromkeys(FRESH) | dict.fromkeys(DISTILLED, "train@invfusion_g") == NEEDS

    def test_what_waits_for_all_models_is_what_the_graph_says(self) -> None:
        stages = read_values(ROOT / GRAPH)["stages"]
        assert {name for name, stage in stages.items() if "artifacts/models" in stage.get("deps", ())} == JUDGES

    @pytest.mark.parametrize(
        ("stale", "targets", "expected"),
        [
            # New data make stale what DVC does not call so before they are staged.
            ({"stage"}, [], FRESH | DISTILLED),
            ({"stage", "evaluate"}, ["report"], FRESH | DISTILLED),
            ({"stage"}, ["stage", "train@palette"], {"train@palette"}),
            ({"stage"}, ["distill@mmse"], {"distill@mmse", "train@invfusion_g"}),
            ({"stage"}, ["stage"], set()),
            ({"stage"}, ["train"], FRESH),
            # What waits for no model asks for none.
            ({"stage"}, ["stage", "identify", "oracle/dvc.yaml:oracle"], set()),
            ({"train@palette", "evaluate"}, [], {"train@palette"}),
            ({"train@invfusion_g"}, [], {"train@invfusion_g", *DISTILLED}),
            ({"evaluate", "report"}, [], set()),
            ({"oracle/dvc.yaml:oracle"}, ["oracle/dvc.yaml:oracle"], set()),
        ],
    )
    def test_what_targets_wait_for(self, stale: set[str], targets: list[str], expected: set[str]) -> None:
        assert stale_trainings(NEEDS, stale, targets) == expected


class TestHowMany:
    def test_one_for_each_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        monkeypatch.setattr(dvc_runs, "is_on_gpu", lambda name: False)
        counts = {n: trainings_at_once(with_processes(n)) for n in ("auto", 2, 8, 16)}
        assert counts == {"auto": 8, 2: 4, 8: 1, 16: 1}

    def test_one_for_each_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dvc_runs, "is_on_gpu", lambda name: True)
        monkeypatch.setenv("INVFUSION_SLOTS", "0,1,2,3")
        assert {n: trainings_at_once(with_processes(n)) for n in ("auto", 2, 4)} == {"auto": 4, 2: 2, 4: 1}
        # A scheduler has given this process its devices.
        monkeypatch.delenv("INVFUSION_SLOTS")
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        assert trainings_at_once(with_processes("auto")) == 1


def with_processes(n: object) -> object:
    return PARAMS.model_copy(update={"runtime": PARAMS.runtime.model_copy(update={"processes": n})})


class TestRunning:
    def test_in_order_and_no_more_than_there_is_room_for(self, log: Path) -> None:
        assert run_trainings(NEEDS, FRESH | DISTILLED, 2, {}) == 0
        running: set[str] = set()
        seen, ended = [], []
        for what, name in events(log):
            assert what == "end" or NEEDS[name] in {None, *ended}
            ended += [name] * (what == "end")
            running ^= {name}
            seen.append(len(running))
        assert max(seen) == 2
        assert set(ended) == FRESH | DISTILLED
        assert "train@invfusion_g" in begun(log)[:2], "what others wait for goes first"

    def test_those_that_run_together_share_the_threads(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
        assert run_trainings(NEEDS, {"train@invfusion_g", *DISTILLED}, 12, {}) == 0
        assert threads(log) == {"train@invfusion_g": "12", "distill@mmse": "6", "distill@nppc": "6"}

    def test_on_a_gpu_threads_are_left_alone(self, log: Path) -> None:
        assert run_trainings(NEEDS, DISTILLED, 2, {"OMP_NUM_THREADS": "7"}, on_gpu=True) == 0
        assert set(threads(log).values()) == {"7"}

    def test_after_a_failure_none_begins_and_the_others_end(self, log: Path, caplog: pytest.LogCaptureFixture) -> None:
        needs = {"good": None, "bad": None, "later": None, "after": "bad"}
        assert run_trainings(needs, set(needs), 2, {}) == 3
        assert sorted(begun(log)) == ["bad", "good"]
        assert ("end", "good") in events(log)
        assert "bad stopped with exit code 3" in caplog.text

    def test_a_source_that_is_up_to_date_is_not_waited_for(self, log: Path) -> None:
        assert run_trainings(NEEDS, DISTILLED, 2, {}) == 0
        assert set(begun(log)) == DISTILLED

    def test_all_are_stopped_at_once(self, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each takes two seconds to end: the second hears of it before the first has."""

        class Interrupted:
            @staticmethod
            def sleep(_: float) -> None:
                time.sleep(0.05)
                if log.exists() and len(begun(log)) == 2:
                    raise KeyboardInterrupt

        monkeypatch.setattr(dvc_runs, "time", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_trainings({"long-1": None, "long-2": None}, {"long-1", "long-2"}, 2, {})
        assert [what for what, _ in events(log)] == ["begin", "begin", "stop", "stop", "stopped", "stopped"]


def test_overlapping_stages_are_counted_once(tmp_path: Path) -> None:
    spans = {"train@a": (0.0, 60.0), "train@b": (30.0, 90.0), "evaluate": (95.0, 100.0), "report": (96.0, 97.0)}
    entries = [{"stage": name, "start": start, "end": end} for name, (start, end) in spans.items()]
    (tmp_path / "timings").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    table = time_table(tmp_path / "timings", 125.0)
    assert "around them (24%)" in table
    assert table.endswith(" 30.0 s")
