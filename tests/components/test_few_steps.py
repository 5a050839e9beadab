"""Few steps against exact posteriors, with tiny models."""

import json
from pathlib import Path

import pytest
from test_oracle import small_params
from tiny_training import workplace

from components.oracle.few_steps import few_steps

pytest.importorskip("sklearn")


def test_every_number_of_calls_is_judged(tmp_path: Path) -> None:
    with workplace(tmp_path):
        records = json.loads(few_steps(small_params()).read_text())
    calls = {(r["method"], r["nfe"]) for r in records}
    assert {("Consistency, consistency", n) for n in (1, 2, 4)} < calls
    assert {("Flow matching, flow", n) for n in (3, 7, 35)} < calls
    assert {n for method, n in calls if method.endswith("heun")} == {1, 3, 5, 9, 17, 35}
    assert {r["metric"] for r in records} >= {"sliced_wasserstein", "coverage_90", "spread", "psnr"}
    assert all(r["ratio"] is not None for r in records if r["metric"] == "sliced_wasserstein")
