import logging

import pytest

from components.profiles import load_profile
from components.training.dry_run import dry_run


def test_the_default_profile_tries_every_family(caplog: pytest.LogCaptureFixture) -> None:
    params = load_profile()
    with caplog.at_level(logging.INFO):
        dry_run(params)
    said = caplog.text
    assert all(f"{model} " in said for model in params.train.models)
    assert [kind in said for kind in ("'strided_convolution'", "'mask'", "'matrix'", "'null'")] == [True] * 4
