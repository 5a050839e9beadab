"""Train one variant of the denoiser."""

from pathlib import Path
from typing import get_args

from prefect import flow

from components.train import train as component
from flows import entry
from invfusion.models import Variant


@flow(name="train", flow_run_name="train-{variant}")
def train(variant: Variant = "invfusion", params: str = "params.yaml") -> Path:
    """Train one variant of the denoiser."""
    return entry.step(component, params, variant)


if __name__ == "__main__":
    entry.command_line(train, __doc__, "variant", get_args(Variant))
