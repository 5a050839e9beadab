"""The oracle end to end: a sampler of each kind, tiny models, few draws."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import make_params, workplace

from components.oracle import judging, training
from components.oracle import oracle as component
from components.oracle import records as oracle_records
from components.oracle.cell import judge
from components.oracle.oracle import oracle, samplers_to_judge
from components.params import Params
from components.profiles import load_profile
from invfusion.errors import ConfigError
from invfusion.oracle import DECOYS
from invfusion.samplers import SAMPLERS, Heun

pytest.importorskip("sklearn")

Record = dict[str, Any]

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
        "clusters": 3,
        "cluster_images": 64,
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


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


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
    assert {(r["method"], r.get("width", 0), r.get("images", 0)) for r in excess} == {
        *(("invfusion_mmse", width, images) for width in (24, 48) for images in (64, 128)),
        *(("palette_mmse", 48, images) for images in (64, 128)),
        *(("unconditional", 48, images) for images in (64, 128)),
        ("mmse", 48, 192),
        *(("InvFusion-G", 48, images) for images in (64, 128)),
        ("InvFusion-G distilled", 48, 192),
        ("Wiener", 0, 0),
        ("Clusters", 0, 64),
    }
    assert all(r["value"] > 1 for r in excess)
    draws = of(records, judgement="model", metric="sliced_wasserstein")
    assert {r["method"] for r in draws} == {"invfusion", "InvFusion-G", "palette", "unconditional_ddrm"}
    captured = of(records, metric="nppc_captured")[0]["value"]
    assert 0 < captured < 1


def test_the_page_stands_alone(finished: tuple[Path, list[Record]]) -> None:
    folder, records = finished
    page = (folder / "reports/oracle.html").read_text()
    assert page.count("data:image/png") == 6
    assert "decoy_narrow" in page
    assert not re.findall(r"https?://|src=\"(?!data:)|<script|<link", page)
    for r in records:
        if r["value"] is not None and (r["judgement"], r["metric"]) == ("sampler", "sliced_wasserstein"):
            assert f"{r['ratio']:.2f}" in page
            assert f"{r['value']:.3f}" in page
        if r["metric"] == "excess_mse" and r.get("images") != 64:
            assert f"{r['value']:.3g}" in page


def test_what_was_computed_is_not_computed_again(
    finished: tuple[Path, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = finished
    monkeypatch.setattr(judging, "judge_sampler", lambda *_: pytest.fail("judged again"))
    (folder / "reports/oracle.json").unlink()
    oracle(small_params())
    assert json.loads((folder / "reports/oracle.json").read_text()) == before


def test_other_code_or_settings_are_computed_anew(finished: tuple[Path, list[Record]]) -> None:
    calls = []
    code = ("invfusion.rng",), ("invfusion.codec",)
    for facts, entry in (({"a": 1}, code[0]), ({"a": 2}, code[0]), ({"a": 1}, code[1]), ({"a": 1}, code[0])):
        oracle_records.kept(facts, entry, lambda facts=facts: calls.append(facts) or oracle_records.Results())
    assert len(calls) == 3


def test_a_model_goes_on_from_its_own_state(
    finished: tuple[Path, list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The excess along the way is measured on one training run, and is that of runs of their own."""
    params = small_params()
    prior = component.fit_priors(params)["tiny"]
    bench = training.Bench(params, "tiny", prior, "palette", 48)
    monkeypatch.setattr(training, "STATE", Path("state/elsewhere"))
    on_the_way = [training.diffusion_model(bench, images) for images in (64, 128)]
    shutil.rmtree("state/elsewhere")
    at_once = training.diffusion_model(bench, 128)
    assert_equal(on_the_way[1].state_dict(), at_once.state_dict())
    steps = []
    monkeypatch.setattr(training.train.__globals__["Stepper"], "step", lambda *_: steps.append(1))
    assert_equal(training.diffusion_model(bench, 128).state_dict(), at_once.state_dict())
    assert steps == []


def test_one_cell_can_be_judged_alone(finished: tuple[Path, list[Record]], caplog: pytest.LogCaptureFixture) -> None:
    _, whole = finished
    with caplog.at_level(logging.INFO):
        records = judge(small_params(), "tiny", "box_inpainting", 0.1, ["ddrm", "dps"])
    assert {record.method for record in records} == {"exact", *DECOYS, "ddrm", "dps"}
    (dps,) = [r for r in records if (r.method, r.metric) == ("dps", "sliced_wasserstein")]
    assert [dps.as_json()] == of(whole, judgement="sampler", method="dps", metric="sliced_wasserstein")
    assert f"dps {{'n_steps': 3}}, 3 calls: {dps.value / dps.floor:.2f} of the floor" in caplog.text
    with pytest.raises(ConfigError, match=r"unknown family of params\.oracle 'matrix'"):
        judge(small_params(), "tiny", "matrix", 0.1, ["ddrm"])


def test_both_settings_of_zero_shot_methods_are_judged() -> None:
    """Those of an evaluation on a laptop, and their authors' own, which headlines quote: MGPS has two rates."""
    listed = load_profile().oracle.samplers
    for kind, count in (("dps", 2), ("daps", 2), ("mgps", 3)):
        settings = [sampler for sampler in listed if sampler.kind == kind]
        assert len(settings) == count
        assert SAMPLERS[kind]() in settings, "the authors'"


def test_samplers_that_are_not_listed_run_at_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "SAMPLERS", SAMPLERS)
    chosen = samplers_to_judge([Heun(n_steps=3)])
    kinds = [sampler.kind for sampler in chosen]
    assert kinds.count("heun") == 1
    assert set(kinds) == {k for k, s in SAMPLERS.items() if s.follows in ("posterior", "approximation")}


def test_numbers_that_are_not_finite_say_so() -> None:
    head = {"judgement": "sampler", "prior": "p", "method": "x", "settings": {}, "degradation": "matrix"}
    r = oracle_records.record(head | {"sigma_y": 0.1, "n": 2, "nfe": 1}, "spread", float("nan"))
    assert r.value is None
    assert "not finite" in r.unavailable
    assert r.as_json()["floor"] is None
