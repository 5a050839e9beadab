"""Train one variant of the denoiser."""

from pathlib import Path

from prefect import flow

from components.training.train import VARIANTS
from components.training.train import train as component
from flows import entry
from invfusion.training.config import TrainedVariant


@flow(name="train", flow_run_name="train-{variant}")
def train(variant: TrainedVariant = "invfusion", params: str = "params.yaml") -> Path:
    """Train one variant of the denoiser."""
    return entry.step(component, params, variant, devices=lambda p: p.runtime.n_devices)


if __name__ == "__main__":
    entry.command_line(train, __doc__, "variant", VARIANTS)
