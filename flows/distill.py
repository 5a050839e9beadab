"""Distill a trained diffusion model."""

from pathlib import Path
from typing import get_args

from prefect import flow

from components.training.distill import distill as component
from flows import entry
from invfusion.training.config import DistilledTarget


@flow(name="distill", flow_run_name="distill-{target}")
def distill(target: DistilledTarget = "mmse", params: str = "params.yaml") -> Path:
    """Distill a trained diffusion model."""
    return entry.step(component, params, target, devices=lambda p: p.runtime.n_devices)


if __name__ == "__main__":
    entry.command_line(distill, __doc__, "target", get_args(DistilledTarget))
