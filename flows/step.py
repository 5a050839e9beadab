"""One stage as a Prefect flow and as a process: `python -m flows.step evaluate`, `... train --model palette`."""

import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components import cli
from components.params import load_params
from flows import entry
from flows.stages import STAGES, Stage
from invfusion.training.recipes import RECIPES

if TYPE_CHECKING:
    from prefect import Flow


def body_of(stage: Stage) -> Callable[..., Any]:
    """What runs a stage's component in this process, waiting for devices where it needs any."""

    def step(params: str = "params.yaml", **chosen: str) -> Any:
        devices = (lambda p: p.runtime.n_devices) if stage.needs_device else None
        return entry.step(stage.function(), params, *chosen.values(), devices=devices)

    own = [inspect.Parameter(stage.each, inspect.Parameter.KEYWORD_ONLY, annotation=str)] if stage.each else []
    first = inspect.Parameter("params", inspect.Parameter.KEYWORD_ONLY, default="params.yaml", annotation=str)
    step.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
    return step


def step_of(stage: Stage) -> "Flow[..., Any]":
    """It, as a flow."""
    # A job's process needs no Prefect, which takes seconds to import.
    from prefect import flow

    name = f"{stage.name}-{{{stage.each}}}" if stage.each else None
    return flow(name=stage.name, flow_run_name=name, description=stage.does)(body_of(stage))


def main() -> None:
    parser = cli.parser(__doc__, params=False)
    stages = parser.add_subparsers(dest="stage", required=True, metavar="stage")
    for stage in STAGES.values():
        command = stages.add_parser(stage.name, help=stage.does, description=stage.does)
        cli.add_params(command)
        if stage.each:
            command.add_argument(f"--{stage.each}", required=True, choices=RECIPES)
    arguments = vars(parser.parse_args())
    stage = STAGES[arguments.pop("stage")]
    with entry.clear_ends():
        load_params(arguments["params"])
        if os.environ.get(entry.JOB):
            body_of(stage)(**arguments)
            return
        entry.check_prefect()
        entry.run_recorded(step_of(stage), arguments)


if __name__ == "__main__":
    main()
