"""Verify and decode the versioned shards."""

import argparse
from pathlib import Path

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402


@flow(name="stage")
def stage(params: str = "params.yaml") -> Path:
    """Verify and decode the versioned shards."""
    from components.stage import stage as step
    from invfusion.config import load_params

    return step(load_params(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    entry.run(lambda: stage(params=arguments.params), arguments.params)


if __name__ == "__main__":
    main()
