"""Stages that DVC runs at once: which, and by what command."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.params import read_values
from components.profiles import load_profile
from flows import dvc_runs
from flows.dvc_runs import JUDGES, OWN, needs, run_graph, run_stages, to_run
from flows.reproduce import stale, time_table
from flows.stages import GRAPH

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_profile("digits16")
NEEDS = needs(PARAMS)
FRESH = {"train@unconditional", "train@palette", "train@invfusion", "train@invfusion_g"}
DISTILLED = {"distill@mmse", "distill@nppc"}


class TestWhich:
    def test_each_after_the_one_that_it_starts_from(self) -> None:
        assert {name for name in NEEDS if NEEDS[name] == {"stage"}} == FRESH
        assert {name for name in NEEDS if NEEDS[name] == {"stage", "train@invfusion_g"}} == DISTILLED

    def test_the_rest_is_what_the_graph_says(self) -> None:
        stages = read_values(ROOT / GRAPH)["stages"]
        assert set(stages) == OWN
        uses = {name: set(stages[name]["deps"]) for name in JUDGES}
        makes = {name: {*stages[name]["outs"], *stages[name].get("metrics", ())} for name in JUDGES}
        assert all("artifacts/models" in used for used in uses.values())
        for name in JUDGES:
            made_by_others = {other for other in JUDGES if uses[name] & makes[other]}
            assert made_by_others == NEEDS[name] - FRESH - DISTILLED
        assert NEEDS["evaluate"] == FRESH | DISTILLED
        assert {name.partition("@")[0] for name in NEEDS} | {"identify"} == OWN

    @pytest.mark.parametrize(
        ("stale", "targets", "expected"),
        [
            # New data make stale what DVC does not call so before they are staged.
            ({"stage"}, [], set(NEEDS)),
            ({"stage", "evaluate"}, ["report"], set(NEEDS) - {"register"}),
            ({"stage"}, ["stage", "train@palette"], {"stage", "train@palette"}),
            ({"stage"}, ["distill@mmse"], {"stage", "distill@mmse", "train@invfusion_g"}),
            ({"stage"}, ["stage"], {"stage"}),
            ({"stage"}, ["train"], {"stage", *FRESH}),
            ({"train@palette", "evaluate"}, [], {"train@palette", *JUDGES}),
            ({"train@invfusion_g"}, [], {"train@invfusion_g", *DISTILLED, *JUDGES}),
            ({"evaluate", "report"}, [], set(JUDGES)),
            ({"report"}, [], {"report"}),
            # Others are DVC's own to run.
            ({"oracle/dvc.yaml:oracle"}, ["oracle/dvc.yaml:oracle"], set()),
        ],
    )
    def test_what_targets_wait_for(self, stale: set[str], targets: list[str], expected: set[str]) -> None:
        assert to_run(NEEDS, stale, targets) == expected


class TestHow:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """What is run, on a machine with room for two."""
        asked: list[Any] = []
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(dvc_runs, "is_on_gpu", lambda _: False)
        monkeypatch.setattr(dvc_runs, "trainings_at_once", lambda *_: 2)
        monkeypatch.setattr(dvc_runs, "run_dvc", lambda targets, _: asked.append(list(targets)) or 0)
        monkeypatch.setattr(dvc_runs, "run_at_once", lambda commands, *_, **__: asked.append(set(commands)) or 0)
        return asked

    def test_each_by_a_run_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(dvc_runs, "run_at_once", lambda *told, **options: asked.extend([*told, options]) or 0)
        assert run_stages(NEEDS, DISTILLED, 3, {"A": "b"}, on_gpu=True) == 0
        commands, graph, at_once, environment, _, options = asked
        assert {name: command[-2:] for name, command in commands.items()} == {
            name: ["--single-item", name] for name in DISTILLED
        }
        assert (graph, at_once, environment["A"], options) == (NEEDS, 3, "b", {"share_threads": False})

    @pytest.mark.parametrize(
        ("stale", "targets", "expected"),
        [
            ({"stage"}, [], [["stage"], set(NEEDS) - {"stage"}]),
            ({"evaluate"}, [], [set(JUDGES)]),
            ({"train@palette"}, ["report"], [{"train@palette", "evaluate", "report"}]),
            ({"stage", "data.dvc"}, ["train@palette"], [["stage"], {"train@palette"}]),
            # What is not of the graph may lie between, and DVC alone knows what waits for it.
            ({"mine"}, [], [[]]),
            ({"train@palette", "mine/dvc.yaml:mine"}, [], [[]]),
            ({"report"}, ["report", "oracle/dvc.yaml:oracle"], [["report", "oracle/dvc.yaml:oracle"]]),
        ],
    )
    def test_what_dvc_is_asked_for(
        self, asked: list[Any], stale: set[str], targets: list[str], expected: list[Any]
    ) -> None:
        assert run_graph(PARAMS, stale, targets, {}) == 0
        assert asked == expected

    @pytest.mark.parametrize("stale", [{"stage"}, {"evaluate"}])
    def test_beside_stages_of_somebody_dvc_runs_all(
        self, asked: list[Any], monkeypatch: pytest.MonkeyPatch, stale: set[str]
    ) -> None:
        """They may lie between ours, or be made stale by them."""
        stages = {**read_values(ROOT / GRAPH)["stages"], "mine": {"cmd": "true"}}
        monkeypatch.setattr(dvc_runs, "read_values", lambda _: {"stages": stages})
        assert run_graph(PARAMS, stale, [], {}) == 0
        assert asked == [[]]

    def test_one_after_another_where_there_is_no_room(self, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dvc_runs, "trainings_at_once", lambda *_: 1)
        assert run_graph(PARAMS, {"stage"}, ["report"], {}) == 0
        assert asked == [["report"]]


def test_a_fresh_checkout_is_not_asked_what_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert stale([]) == {"stage"}


def test_overlapping_stages_are_counted_once(tmp_path: Path) -> None:
    spans = {"train@a": (0.0, 60.0), "train@b": (30.0, 90.0), "evaluate": (95.0, 100.0), "report": (96.0, 97.0)}
    entries = [{"stage": name, "start": start, "end": end} for name, (start, end) in spans.items()]
    (tmp_path / "timings").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    table = time_table(tmp_path / "timings", 125.0)
    assert "around them (24%)" in table
    assert table.endswith(" 30.0 s")
