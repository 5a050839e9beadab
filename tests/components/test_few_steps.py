"""Few steps against exact posteriors, with tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_oracle import small_params
from tiny_training import workplace

from components.oracle import few_steps as module
from components.oracle.few_steps import few_steps
from components.reporting.figures import lines

pytest.importorskip("sklearn")


def test_every_number_of_calls_is_judged_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(module.figures, "lines", lambda *told, **options: drawn.append(told) or lines(*told, **options))
    with workplace(tmp_path):
        records = json.loads(few_steps(small_params()).read_text())
        assert module.FIGURE.stat().st_size > 10_000
    calls = {(r["method"], r["nfe"]) for r in records}
    assert {("Consistency, consistency", n) for n in (1, 2, 4)} < calls
    assert {("Flow matching, flow", n) for n in (3, 7, 35)} < calls
    assert {n for method, n in calls if method.endswith("heun")} == {1, 3, 5, 9, 17, 35}
    assert {r["metric"] for r in records} >= {"sliced_wasserstein", "coverage_90", "spread", "psnr"}
    distances = [r for r in records if r["metric"] == "sliced_wasserstein"]
    assert all(r["ratio"] is not None for r in distances)
    [(_, panels, _)] = drawn
    assert {row for row, _ in panels} == set(module.ROWS.values())

    def shown(wanted: str) -> list[float]:
        return sorted(
            point[1]
            for (row, _), series in panels.items()
            if row == wanted
            for points in series.values()
            for point in points
        )

    assert shown(module.DISTANCE) == pytest.approx(sorted(r["ratio"] for r in distances), rel=0.01)
    assert shown(module.COVERAGE) == sorted(r["value"] for r in records if r["metric"] == "coverage_90")
