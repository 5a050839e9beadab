"""The pipeline's stages: flows, jobs, deployments, forms and the identities that DVC tracks are made of this table.

A new stage is one component, one entry here, one in dvc.yaml, and what it waits for in flows/dvc_runs.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from components.params import Params
from invfusion.errors import ConfigError
from invfusion.names import Registry

# What runs without targets.
GRAPH = "dvc.yaml"


@dataclass(frozen=True)
class Stage:
    """One step from files to files.

    does: one sentence. component: module:function, called with the parameters. each: what it runs once for each of, an
    option of its command and an argument of the component. form: the sections of params.yaml that its job offers to
    change. uses: the settings whose classes are part of its code, as they come with the parameters and by no import.
    graph: the file in which DVC finds it.
    """

    name: str
    does: str
    component: str
    each: str = ""
    form: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    needs_device: bool = False
    uses: Callable[[Params], Iterable[Any]] = lambda _: ()
    graph: str = GRAPH

    def function(self) -> Callable[..., Any]:
        """The component itself."""
        module, _, name = self.component.partition(":")
        function: Callable[..., Any] = getattr(import_module(module), name)
        return function


def _methods(params: Params) -> list[Any]:
    return [params.evaluate, *(params.methods[name] for name in params.evaluate.methods)]


_TABLE = (
    Stage("stage", "Verify and decode the versioned shards.", "components.data.stage:stage", tags=("data",)),
    Stage(
        "train", "Train one model, or go on training it.", "components.training.train:train",
        each="model", form=("train", "recipes", "runtime"), tags=("gpu", "training"), needs_device=True,
    ),
    Stage(
        "evaluate", "Judge every method on frozen measurement sets.", "components.evaluation.evaluate:evaluate",
        form=("evaluate", "runtime"), tags=("gpu", "evaluation"), needs_device=True, uses=_methods,
    ),
    Stage(
        "report", "One page of tables, galleries and curves.", "components.reporting.report:report",
        form=("report",), tags=("reporting",),
    ),
    Stage(
        "register", "Register the model in MLflow, and promote it where the gates pass.",
        "components.registry.register:register", form=("register",), tags=("registry",),
    ),
    Stage(
        "oracle", "Judge samplers and small models on priors whose posteriors are known exactly.",
        "components.oracle.oracle:oracle", form=("oracle",), tags=("evaluation",), uses=lambda params: [params.oracle],
        graph="oracle/dvc.yaml",
    ),
)  # fmt: skip
STAGES: Registry[Stage] = Registry("stage", {stage.name: stage for stage in _TABLE})


def target(params: Params, stage: str, model: str = "") -> str:
    """DVC's name for a stage, or for the training of one model.

    Raises:
        ConfigError: the pipeline does not train this model.
    """
    if not model:
        graph = STAGES[stage].graph
        return stage if graph == GRAPH else f"{graph}:{stage}"
    if model not in params.models:
        raise ConfigError(
            f"the pipeline does not train '{model}': put it into train.models, or into train.distilled with the model "
            f"that it starts from; there are {', '.join(params.models)}"
        )
    return f"{'distill' if model in params.train.distilled else 'train'}@{model}"
