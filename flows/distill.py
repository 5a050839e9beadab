"""Distill the diffusion model to a one-step estimator."""

import argparse
from pathlib import Path
from typing import Literal, get_args

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402

Choice = Literal["mmse", "nppc"]


@flow(name="distill", flow_run_name="distill-{target}")
def distill(target: Choice, params: str = "params.yaml") -> Path:
    """Distill the diffusion model to a one-step estimator."""
    from components.distill import distill as step
    from invfusion.config import load_params

    return step(load_params(params), target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, choices=get_args(Choice))
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    entry.run(lambda: distill(target=arguments.target, params=arguments.params), arguments.params)


if __name__ == "__main__":
    main()
