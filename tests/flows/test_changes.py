"""The forms of the Prefect UI: the pydantic config's own checks, in which every field may be left empty."""

import pytest
from pydantic import ValidationError

from components.params import Params, RuntimeConfig, read_values
from flows import changes
from flows.jobs import JOBS, ParamsChanges, form_of, promote, reproduce, rollback


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


def test_no_form_asks_for_what_may_hold_a_password() -> None:
    """A server keeps what is filled in, and refuses what its form does not know before it does."""
    for form in (ParamsChanges, form_of("runtime")):
        schema = form.model_json_schema()
        assert "mlflow_uri" not in str(schema)
        assert all(part["additionalProperties"] is False for part in (schema, schema["$defs"]["RuntimeConfigChanges"]))
        with pytest.raises(ValidationError, match="mlflow_uri"):
            form.model_validate({"runtime": {"mlflow_uri": "postgresql://user:hunter2@db/mlflow"}})


def test_a_form_says_what_a_field_means_and_which_value_it_has() -> None:
    assert changes.explained(
        RuntimeConfig,
        "device",
    ) == ('auto, cpu or cuda; "auto" is CUDA where there is one. CUDA_VISIBLE_DEVICES chooses among GPUs.')
    assert changes.explained(RuntimeConfig, "compile").startswith("run networks through torch.compile")
    assert changes.explained(RuntimeConfig, "mlflow_uri") is None
    form = JOBS["train"].parameters.model_dump(exclude_unset=True)
    values = read_values("profiles/base.yaml")
    values["runtime"]["device"] = "cpu"
    known = changes.with_values(form, values)["definitions"]
    for job in (*JOBS.values(), reproduce, promote, rollback):
        shown = changes.with_values(job.parameters.model_dump(exclude_unset=True), values)["properties"]
        assert all(parameter["description"] for parameter in shown.values())
    assert known["RuntimeConfigChanges"]["properties"]["device"]["description"].endswith('among GPUs. Now: "cpu"')
    assert "Now:" not in str(form)
