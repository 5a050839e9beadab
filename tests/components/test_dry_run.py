import logging
import re
from typing import Any

import pytest

from components.account import Machine, Step, account, table
from components.params import Params, params_from
from components.profiles import load_profile, merged, profile_values
from components.reporting.experiments import experiment_names
from components.training.dry_run import dry_run


def test_the_default_profile_tries_every_family(caplog: pytest.LogCaptureFixture) -> None:
    params = load_profile()
    with caplog.at_level(logging.INFO):
        lines = dry_run(params)
    said = caplog.text
    assert {line.what for line in lines if line.stage == "train"} == set(params.train.models)
    assert {line.what for line in lines if line.stage == "distill"} == set(params.train.distilled)
    calls = {line.what: line.calls for line in lines if line.calls}
    assert calls["strided_motion_blur: DDRM"] == 25
    assert calls["matrix: InvFusion"] == 20
    assert calls["matrix: InvFusion MMSE"] == calls["box_inpainting: NPPC"] == 1
    assert "does not fit" not in said
    assert all(f"{model} " in said for model in params.train.models)
    assert [kind in said for kind in ("'strided_convolution'", "'mask'", "'matrix'", "'null'")] == [True] * 4


def test_a_profile_without_invfusion_tries_what_it_trains(caplog: pytest.LogCaptureFixture) -> None:
    changes = {
        "train": {"models": ["unconditional", "indi"]},
        "degradation": {"kind": "box_inpainting"},
        "register": {"model": "indi"},
    }
    values = merged(profile_values("digits16"), changes)
    values["train"]["distilled"] = {}
    values["methods"]["InDI"] = {"model": "indi"}
    with caplog.at_level(logging.INFO):
        dry_run(params_from(values, "test"))
    assert "operator 'mask'" in caplog.text


def of_the_paper(**evaluate: Any) -> tuple[Params, list]:
    params = load_profile("ffhq64")
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update=evaluate)})
    sizes = {"unconditional": 305_474_315, "palette": 305_478_923, "invfusion": 375_280_907, "invfusion_g": 375_280_907}
    return params, account(params, sizes, Step(params.architecture("invfusion"), activation_bytes=1e9))


def test_the_papers_training_takes_a_day_on_its_gpus() -> None:
    _, lines = of_the_paper()
    line = next(line for line in lines if line.what == "invfusion")
    assert line.flops == pytest.approx(8.2e18, rel=0.02), "2^25 images, three passes of 81.3 GFLOP"
    assert line.flops / (8 * Machine.named("a40").flops) == pytest.approx(86_400, rel=0.1)


def test_what_does_not_fit_says_why() -> None:
    _, lines = of_the_paper()
    small = Machine("a laptop", flops=1e11, memory=8e9, disk=1e9)
    rows = table(lines, small)
    (row,) = [row for row in rows if "train / invfusion " in row]
    assert re.search(r"does not fit: \d+ GiB of memory, 7 are there; \d+ days", row)
    assert "GiB of disk, 1 are free" in rows[-1]


def test_methods_that_differentiate_keep_what_a_backward_pass_needs() -> None:
    _, lines = of_the_paper(methods=["DDRM", "DPS"])
    memory = {line.what: line.memory for line in lines}
    assert memory["matrix: DPS"] - memory["matrix: DDRM"] > 30e9, "64 images of a gigabyte, less the network's width"


def test_every_table_has_its_account(caplog: pytest.LogCaptureFixture) -> None:
    """Trainings, among them those of its own; a table that needs classes says so."""
    with caplog.at_level(logging.INFO):
        dry_run(load_profile(), gpu="a40", tables=True)
    said = {line.partition(":")[0]: line for line in caplog.messages}
    assert set(experiment_names()) <= set(said)
    assert "training" in said["table_01"]
    assert all(name in said["table_01"] for name in ("unconditional", "palette", "indi", "invfusion_g"))
    assert "has no class labels" in said["table_02"]
    assert all(name in said["table_08"] for name in ("level_1 ", "levels_1_2 "))
    assert "levels_1_3" not in said["table_08"], "of an architecture with two"
    assert "palette_mmse" in said["table_07"]
    assert "restoring" in said["figure_03"]


def test_evaluation_grows_with_images_and_draws() -> None:
    (_, few), (_, many) = of_the_paper(n_images=1000, calibration_images=0), of_the_paper(n_images=2000)
    one, other = (next(x for x in lines if x.what == "matrix: InvFusion") for lines in (few, many))
    draws = 7
    assert other.flops / one.flops == pytest.approx((2000 + 500 * draws) / (1000 + 6 * 3))
