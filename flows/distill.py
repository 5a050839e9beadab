"""Distill the diffusion model to a one-step estimator."""

from pathlib import Path
from typing import get_args

from prefect import flow

from components.distill import Target
from components.distill import distill as component
from flows import entry


@flow(name="distill", flow_run_name="distill-{target}")
def distill(target: Target = "mmse", params: str = "params.yaml") -> Path:
    """Distill the diffusion model to a one-step estimator."""
    return entry.step(component, params, target)


if __name__ == "__main__":
    entry.command_line(distill, __doc__, "target", get_args(Target))
