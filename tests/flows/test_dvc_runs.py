"""Trainings at once: which, in what order, how many, and what a failure does."""

import json
import sys
from pathlib import Path

import pytest
import torch

from components.profiles import load_profile
from flows import dvc_runs
from flows.dvc_runs import run_trainings, sources, stale_trainings, trainings_at_once
from flows.reproduce import time_table

PARAMS = load_profile("digits16")
NEEDS = sources(PARAMS)
FRESH = {"train@unconditional", "train@palette", "train@invfusion", "train@invfusion_g"}
DISTILLED = {"distill@mmse", "distill@nppc"}
# What a run of DVC is in these tests: it notes when it begins and ends, and fails where its name says so.
RUN = """
import sys, time
log, name = sys.argv[1:3]
def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {name}\\n")
note("begin"); time.sleep(0.6); note("end")
sys.exit(3 * ("bad" in name))
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setattr(dvc_runs, "dvc_command", lambda words: [sys.executable, "-c", RUN, str(path), words[-1]])
    return path


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()]


class TestWhich:
    def test_each_after_the_one_that_it_starts_from(self) -> None:
        assert dict.fromkeys(FRESH) | dict.fromkeys(DISTILLED, "train@invfusion_g") == NEEDS

    @pytest.mark.parametrize(
        ("stale", "targets", "expected"),
        [
            # New data make stale what DVC does not call so before they are staged.
            ({"stage"}, [], FRESH | DISTILLED),
            ({"stage", "evaluate"}, ["report"], FRESH | DISTILLED),
            ({"stage"}, ["stage", "train@palette"], {"train@palette"}),
            ({"stage"}, ["distill@mmse"], {"distill@mmse", "train@invfusion_g"}),
            ({"stage"}, ["stage"], set()),
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
        events, running, seen = lines(log), set(), []
        for what, name in events:
            running = running | {name} if what == "begin" else running - {name}
            seen.append(len(running))
            if name in DISTILLED and what == "begin":
                assert ["end", "train@invfusion_g"] in events[: events.index([what, name])]
        assert max(seen) == 2
        assert {name for _, name in events} == FRESH | DISTILLED
        assert "train@invfusion_g" in {name for _, name in events[:2]}, "what others wait for goes first"

    def test_after_a_failure_none_begins_and_the_others_end(self, log: Path) -> None:
        assert (
            run_trainings(
                {"good": None, "bad": None, "later": None, "after": "bad"}, {"good", "bad", "later", "after"}, 2, {}
            )
            == 3
        )
        begun = [name for what, name in lines(log) if what == "begin"]
        assert sorted(begun) == ["bad", "good"]
        assert ["end", "good"] in lines(log)

    def test_a_source_that_is_up_to_date_is_not_waited_for(self, log: Path) -> None:
        assert run_trainings(NEEDS, DISTILLED, 2, {}) == 0
        assert {name for _, name in lines(log)} == DISTILLED


def test_overlapping_stages_are_counted_once(tmp_path: Path) -> None:
    spans = {"train@a": (0.0, 60.0), "train@b": (30.0, 90.0), "evaluate": (95.0, 100.0), "report": (96.0, 97.0)}
    entries = [{"stage": name, "start": start, "end": end} for name, (start, end) in spans.items()]
    (tmp_path / "timings").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    table = time_table(tmp_path / "timings", 125.0)
    assert "around them (24%)" in table
    assert table.endswith(" 30.0 s")
