import logging
from pathlib import Path

import pytest

from components.params import load_params
from components.training.dry_run import dry_run, profile_path


def test_the_default_profile_tries_every_family(caplog: pytest.LogCaptureFixture) -> None:
    params = load_params(Path(__file__).parents[2] / profile_path("digits16"))
    with caplog.at_level(logging.INFO):
        dry_run(params)
    said = caplog.text
    assert all(f"{variant} " in said for variant in params.train.variants)
    assert [kind in said for kind in ("'strided_convolution'", "'mask'", "'matrix'", "'null'")] == [True] * 4
