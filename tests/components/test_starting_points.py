"""What is known of the oracle's priors before training, and the curves of training on one far from Gaussian."""

import json
from pathlib import Path

import pytest
from test_oracle import small_params
from tiny_training import workplace

from components.oracle import far as far_component
from components.oracle.far import MODELS, NEEDS_NONE, far
from components.oracle.untrained import SIGMA_Y, untrained
from components.params import PriorConfig
from invfusion.errors import ConfigError

pytest.importorskip("sklearn")


def test_the_clusters_are_judged_at_every_level_of_noise(tmp_path: Path) -> None:
    params = small_params()
    none = params.oracle.training.model_copy(update={"clusters": 1})
    without = params.model_copy(update={"oracle": params.oracle.model_copy(update={"training": none})})
    with workplace(tmp_path):
        records = json.loads(untrained(params).read_text())
        with pytest.raises(ConfigError, match="clusters is 1"):
            untrained(without)
    for metric in ("excess_mse", "sliced_wasserstein", "coverage_90", "nppc_captured", "nppc_std_ratio"):
        assert {r["sigma_y"] for r in records if r["metric"] == metric} == set(SIGMA_Y)
    assert {r["method"] for r in records} == {"Wiener", "Clusters", "InvFusion-G", "InvFusion-G NPPC"}


def test_both_preconditionings_have_their_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = PriorConfig(name="far", image_size=8, n_components=3, rank=3, floor=0.001)
    few = {"images": 128, "checkpoints": [64], "cluster_images": 64, "n_test": 33}
    monkeypatch.setattr(far_component, "PRIOR", prior)
    monkeypatch.setattr(far_component, "TRAINING", far_component.TRAINING | few)
    monkeypatch.setattr(far_component, "WIDTH", 24)
    with workplace(tmp_path):
        records = json.loads(far(small_params()).read_text())
        assert far_component.FIGURE.is_file()
    curves = {(r["method"], r["images"]) for r in records if r["method"] not in NEEDS_NONE}
    assert curves == {(method, images) for method in MODELS for images in (64, 128)}
    assert {r["method"] for r in records} == {*MODELS, *NEEDS_NONE}
