"""Judge every method on frozen measurement sets."""

from pathlib import Path

from prefect import flow

from components.evaluation.evaluate import evaluate as component
from flows import entry


@flow(name="evaluate")
def evaluate(params: str = "params.yaml") -> Path:
    """Judge every method on frozen measurement sets."""
    return entry.step(component, params, devices=lambda p: p.runtime.n_devices)


if __name__ == "__main__":
    entry.command_line(evaluate, __doc__)
