"""Judge every method on frozen measurement sets."""

import argparse
from pathlib import Path

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402


@flow(name="evaluate")
def evaluate(params: str = "params.yaml") -> Path:
    """Judge every method on frozen measurement sets."""
    from components.evaluate import evaluate as step
    from invfusion.config import load_params

    return step(load_params(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    entry.run(lambda: evaluate(params=arguments.params), arguments.params)


if __name__ == "__main__":
    main()
