"""Trainings that DVC runs at once: which, and by what command."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.params import read_values
from components.profiles import load_profile
from flows import dvc_runs
from flows.dvc_runs import JUDGES, run_trainings, sources, stale_trainings
from flows.reproduce import time_table
from flows.stages import GRAPH

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_profile("digits16")
NEEDS = sources(PARAMS)
FRESH = {"train@unconditional", "train@palette", "train@invfusion", "train@invfusion_g"}
DISTILLED = {"distill@mmse", "distill@nppc"}


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


def test_each_by_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(dvc_runs, "run_at_once", lambda *told, **options: asked.extend([*told, options]) or 0)
    assert run_trainings(NEEDS, DISTILLED, 3, {"A": "b"}, on_gpu=True) == 0
    commands, needs, at_once, environment, _, options = asked
    assert {name: command[-2:] for name, command in commands.items()} == {
        name: ["--single-item", name] for name in DISTILLED
    }
    assert (needs, at_once, environment["A"], options) == (NEEDS, 3, "b", {"share_threads": False})


def test_overlapping_stages_are_counted_once(tmp_path: Path) -> None:
    spans = {"train@a": (0.0, 60.0), "train@b": (30.0, 90.0), "evaluate": (95.0, 100.0), "report": (96.0, 97.0)}
    entries = [{"stage": name, "start": start, "end": end} for name, (start, end) in spans.items()]
    (tmp_path / "timings").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    table = time_table(tmp_path / "timings", 125.0)
    assert "around them (24%)" in table
    assert table.endswith(" 30.0 s")
