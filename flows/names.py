"""What runs are called: from the moment somebody asks for them, and not only once they begin."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefect.runtime import flow_run
from pydantic import BaseModel

from flows.changes import filled

# Parameters of jobs that say what a run is for; the others say how.
FOR = ("model", "version", "profile")
LIMIT = 120


def run_name(job: str, parameters: Mapping[str, Any]) -> str:
    """Its job, what it is for, and the values that it changes: "train-palette train.lr=0.001"."""
    settings = parameters.get("settings") or {}
    changed = filled(settings) if isinstance(settings, BaseModel) else settings
    chosen = [str(parameters[key]) for key in FOR if parameters.get(key)]
    return " ".join(["-".join([job, *chosen]), *_leaves(changed)])[:LIMIT]


def named(job: str) -> Callable[[], str]:
    """For Prefect, which asks when a run begins."""
    return lambda: run_name(job, flow_run.get_parameters())


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}={value}"
