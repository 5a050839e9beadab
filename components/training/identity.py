"""What the training of a model depends on, beside its data and the model that it starts from: settings and code."""

from typing import Any

from components.code import code_of, sources
from components.params import Params
from invfusion.training.config import OptimisationConfig
from invfusion.training.task import Task

# What trains any model, and the form in which models are kept.
TRAINING = ("invfusion.training.loop", "invfusion.models.checkpoint")


def identity(params: Params, name: str) -> dict[str, Any]:
    """All of it, as JSON: what makes a model of the pipeline stale where it differs."""
    architecture = params.architecture(name).model_dump(mode="json")
    first = {"architecture": architecture} if params.starts_from(name) is None else {}
    task = params.task(name)
    recipe = {"recipe": params.recipe(name).settings}
    return {"code": sources().digests(*entry_points(params, name))} | first | recipe | settings(task)


def settings(task: Task) -> dict[str, Any]:
    """What is learnt and how, as JSON."""
    return {
        "loss": task.loss.model_dump(mode="json"),
        "degradation": None if task.degradation is None else task.degradation.model_dump(mode="json"),
        "noise": None if task.degradation is None else task.noise.model_dump(mode="json"),
        "training": task.config.model_dump(mode="json", include=set(OptimisationConfig.model_fields)),
        "seed": task.seed,
    }


def entry_points(params: Params, name: str) -> set[str]:
    """The code of the training, as far as this model uses it."""
    task = params.task(name)
    return {*TRAINING, *code_of(params.recipe(name), task.loss, task.degradation)}
