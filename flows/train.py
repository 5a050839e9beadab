"""Train one variant of the denoiser."""

import argparse
from pathlib import Path
from typing import Literal, get_args

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402

Choice = Literal["unconditional", "palette", "invfusion"]


@flow(name="train", flow_run_name="train-{variant}")
def train(variant: Choice, params: str = "params.yaml") -> Path:
    """Train one variant of the denoiser."""
    from components.train import train as step
    from invfusion.config import load_params

    return step(load_params(params), variant)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", required=True, choices=get_args(Choice))
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    entry.run(lambda: train(variant=arguments.variant, params=arguments.params), arguments.params)


if __name__ == "__main__":
    main()
