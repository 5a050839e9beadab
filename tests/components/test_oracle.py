"""The oracle end to end: a sampler of each kind, tiny models, few draws."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_training import make_params, workplace

from components.oracle import oracle as component
from components.oracle import records as oracle_records
from components.oracle.oracle import oracle, samplers_to_judge
from components.oracle.records import Record
from components.params import Params
from invfusion.oracle import DECOYS
from invfusion.samplers import SAMPLERS, Heun

pytest.importorskip("sklearn")

FEW_STEPS: list[dict[str, Any]] = [
    {"kind": "heun", "n_steps": 3},
    {"kind": "heun", "n_steps": 6},
    {"kind": "ddrm", "n_steps": 3},
    {"kind": "dps", "n_steps": 3},
]


def small_params() -> Params:
    values = make_params().model_dump(mode="json", by_alias=True)
    values["model"]["preset"] = "digits16"
    values["oracle"] |= {
        "priors": [{"name": "tiny", "image_size": 8, "n_components": 2, "rank": 3, "floor": 0.01}],
        "families": [{"kind": "box_inpainting"}],
        "sigma_y": [0.1],
        "n_measurements": 2,
        "n_samples": 16,
        "samplers": FEW_STEPS,
    }
    values["oracle"]["training"] |= {
        "widths": [24, 48],
        "images": 128,
        "checkpoints": [64],
        "distill_images": 64,
        "n_test": 33,
        "n_steps": 2,
    }
    return Params.model_validate(values)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Record]]]:
    folder = tmp_path_factory.mktemp("oracle")
    listed = {member["kind"] for member in FEW_STEPS}
    with workplace(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(component, "in_parallel", lambda jobs: [job() for job in jobs])
        patch.setattr(component, "SAMPLERS", {k: v for k, v in SAMPLERS.items() if k in listed})
        assert oracle(small_params()) == Path("reports/oracle.html")
        yield folder, json.loads((folder / "reports/oracle.json").read_text())


def of(records: list[Record], **wanted: Any) -> list[Record]:
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def test_every_candidate_has_every_score_with_its_floor(finished: tuple[Path, list[Record]]) -> None:
    _, records = finished
    scores = of(records, judgement="sampler", metric="sliced_wasserstein")
    assert {r["method"] for r in scores} == {"exact", *DECOYS, "heun", "ddrm", "dps"}
    assert [r["nfe"] for r in of(scores, method="heun")] == [5, 11]
    for r in scores:
        assert r["low"] <= r["value"] <= r["high"]
        assert r["ratio"] == pytest.approx(r["value"] / r["floor"], rel=1e-4)
    assert {r["metric"] for r in of(records, method="exact")} >= {"mean_error", "coverage_90", "tarp_gap", "spread"}


def test_models_are_measured_on_the_way_and_at_the_end(finished: tuple[Path, list[Record]]) -> None:
    _, records = finished
    excess = of(records, metric="excess_mse")
    assert {(r["method"], r["width"], r["images"]) for r in excess} == {
        *(("invfusion_mmse", width, images) for width in (24, 48) for images in (64, 128)),
        *(("palette_mmse", 48, images) for images in (64, 128)),
        *(("unconditional", 48, images) for images in (64, 128)),
        ("mmse", 48, 192),
    }
    assert all(r["value"] > 1 for r in excess)
    draws = of(records, judgement="model", metric="sliced_wasserstein")
    assert {r["method"] for r in draws} == {"invfusion", "palette", "unconditional_ddrm"}
    captured = of(records, metric="nppc_captured")[0]["value"]
    assert 0 < captured < 1


def test_the_page_stands_alone(finished: tuple[Path, list[Record]]) -> None:
    folder, _ = finished
    page = (folder / "reports/oracle.html").read_text()
    assert page.count("data:image/png") == 6
    assert "decoy_narrow" in page


def test_what_was_computed_is_not_computed_again(
    finished: tuple[Path, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = finished
    monkeypatch.setattr(component, "judge_sampler", lambda *_: pytest.fail("judged again"))
    (folder / "reports/oracle.json").unlink()
    oracle(small_params())
    assert json.loads((folder / "reports/oracle.json").read_text()) == before


def test_other_code_or_settings_are_computed_anew(finished: tuple[Path, list[Record]]) -> None:
    calls = []
    for facts in ({"a": 1}, {"a": 2}, {"a": 1}):
        oracle_records.kept(facts, lambda facts=facts: calls.append(facts) or {"records": [], "curves": []})
    assert len(calls) == 2


def test_samplers_that_are_not_listed_run_at_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "SAMPLERS", SAMPLERS)
    chosen = samplers_to_judge([Heun(n_steps=3)])
    kinds = [sampler.kind for sampler in chosen]
    assert kinds.count("heun") == 1
    assert set(kinds) == {k for k, s in SAMPLERS.items() if s.follows in ("posterior", "approximation")}


def test_numbers_that_are_not_finite_say_so() -> None:
    r = oracle_records.record({"method": "x"}, "spread", float("nan"))
    assert r["value"] is None
    assert "not finite" in r["unavailable"]
