"""The forms of the Prefect UI: the pydantic config's own checks, written to params.yaml where DVC sees it."""

import fcntl
from pathlib import Path

import pytest
from pydantic import ValidationError

from components.params import Params, load_params
from components.profiles import profile_text
from flows import changes
from flows.jobs import ParamsChanges, form_of
from invfusion.errors import ConfigError


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(profile_text("digits16"))
    return path


def test_the_form_has_the_fields_of_the_config() -> None:
    properties = ParamsChanges.model_json_schema()["properties"]
    assert set(properties) == {field.alias or name for name, field in Params.model_fields.items()}
    assert all(field.get("default", None) is None for field in properties.values())


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"precision": "fp8"}, {"learning_rate": 1e-3}])
def test_a_wrong_value_is_refused_in_the_form(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        form_of("train").model_validate({"train": wrong})


def test_members_of_unions_are_checked_too() -> None:
    form = form_of("evaluate").model_validate({"evaluate": {"families": [{"kind": "box_inpainting"}]}})
    assert changes.filled(form) == {"evaluate": {"families": [{"kind": "box_inpainting"}]}}
    with pytest.raises(ValidationError, match="box_inpaintin"):
        form_of("evaluate").model_validate({"evaluate": {"families": [{"kind": "box_inpaintin"}]}})


def test_what_is_filled_in_stands_in_the_params_and_comments_stay(params: Path) -> None:
    form = ParamsChanges.model_validate({"train": {"lr": 1e-3}, "register": {"name": "other"}})
    with changes.applied(changes.filled(form), params):
        settings = load_params(params)
    assert (settings.train.lr, settings.register_.name) == (1e-3, "other")
    before, after = profile_text("digits16").splitlines(), params.read_text().splitlines()
    assert sum(one != two for one, two in zip(before, after, strict=True)) == 2


def test_an_empty_form_leaves_the_file_alone(params: Path) -> None:
    before = params.stat().st_mtime_ns
    with changes.applied(changes.filled(ParamsChanges()), params):
        pass
    assert params.stat().st_mtime_ns == before


def test_values_that_do_not_fit_together_change_nothing(params: Path) -> None:
    before = params.read_text()
    with pytest.raises(ConfigError, match="not a multiple"), changes.applied({"train": {"batch_size": 33}}, params):
        pass
    assert params.read_text() == before
    assert [path.name for path in params.parent.glob(".*")] == []


def test_the_params_of_a_running_job_are_not_changed(params: Path) -> None:
    before = params.read_text()
    changes.LOCK.parent.mkdir()
    with changes.LOCK.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with changes.applied({}, params), changes.applied({"seed": 0}, params):
            pass  # nothing differs, so they share
        with pytest.raises(ConfigError, match="other jobs of this working copy"), changes.applied({"seed": 1}, params):
            pass
    assert params.read_text() == before
