"""Verify and decode the versioned shards."""

from pathlib import Path

from prefect import flow

from components.data.stage import stage as component
from flows import entry


@flow(name="stage")
def stage(params: str = "params.yaml") -> Path:
    """Verify and decode the versioned shards."""
    return entry.step(component, params)


if __name__ == "__main__":
    entry.command_line(stage, __doc__)
