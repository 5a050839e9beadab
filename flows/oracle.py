"""Judge samplers and small models on priors whose posteriors are known exactly."""

from pathlib import Path

from prefect import flow

from components.oracle.oracle import oracle as component
from flows import entry


@flow(name="oracle")
def oracle(params: str = "params.yaml") -> Path:
    """Judge samplers and small models on priors whose posteriors are known exactly."""
    return entry.step(component, params)


if __name__ == "__main__":
    entry.command_line(oracle, __doc__)
