"""One table of stages: each has its step, its job and its place in DVC's graph."""

from typing import Any, get_args

import pytest
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.types.entrypoint import EntrypointType
from pydantic import ValidationError

from components.profiles import load_profile
from flows import jobs
from flows.jobs import JOBS
from flows.stages import STAGES, target
from flows.step import step_of
from flows.workspaces import Wanted
from invfusion.errors import ConfigError
from invfusion.training.recipes import RECIPES


@pytest.mark.parametrize("stage", STAGES.values(), ids=list(STAGES))
def test_a_stage_has_a_component_and_a_step(stage: Any) -> None:
    assert callable(stage.function())
    step = step_of(stage)
    assert (step.name, step.description) == (stage.name, stage.does)


@pytest.mark.parametrize("name", STAGES)
def test_a_worker_finds_the_job_of_a_stage(name: str) -> None:
    deployment = RunnerDeployment.from_flow(
        JOBS[name], name="x", work_pool_name="x", entrypoint_type=EntrypointType.MODULE_PATH
    )
    assert deployment.entrypoint is not None
    assert load_flow_from_entrypoint(deployment.entrypoint) is JOBS[name]


def test_the_form_of_training_offers_each_model_and_its_sections() -> None:
    schema = JOBS["train"].parameters
    assert set(schema.properties) == {"model", "settings", "keep", "force"}
    assert schema.properties["model"]["enum"] == list(RECIPES)
    form = schema.definitions["ParamsChanges"]["properties"]
    assert set(form) == {"train", "recipes", "runtime"}


def test_what_a_form_does_not_offer_is_refused() -> None:
    with pytest.raises(ValidationError, match="evaluate"):
        jobs.form_of("train").model_validate({"evaluate": {"n_images": 3}})


def test_targets_are_named_as_dvc_names_them() -> None:
    params = load_profile()
    assert target(params, "evaluate") == "evaluate"
    assert target(params, "train", "palette") == "train@palette"
    assert target(params, "train", "nppc") == "distill@nppc"
    assert target(params, "oracle") == "oracle/dvc.yaml:oracle"
    with pytest.raises(ConfigError, match=r"does not train 'indi'.*train\.models"):
        target(params, "train", "indi")


def test_a_job_runs_the_stage_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(jobs, "run_job", lambda *arguments: asked.append(arguments))
    settings = get_args(JOBS["train"].fn.__signature__.parameters["settings"].annotation)[0]
    form = settings.model_validate({"train": {"lr": 0.1}})
    JOBS["train"].fn(model="mmse", settings=form, keep=True, force=True)
    ((targets_of, wanted, force),) = asked
    assert targets_of(load_profile()) == ["distill@mmse"]
    assert (wanted, force) == (Wanted(changes={"train": {"lr": 0.1}}, keeps=True), True)
