import logging

import pytest

from components.params import params_from
from components.profiles import load_profile, merged, profile_values
from components.training.dry_run import dry_run


def test_the_default_profile_tries_every_family(caplog: pytest.LogCaptureFixture) -> None:
    params = load_profile()
    with caplog.at_level(logging.INFO):
        dry_run(params)
    said = caplog.text
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
