"""Write the report: one page of tables, galleries and curves."""

import argparse
from pathlib import Path

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402


@flow(name="report")
def report(params: str = "params.yaml") -> Path:
    """Write the report: one page of tables, galleries and curves."""
    from components.report import report as step
    from invfusion.config import load_params

    return step(load_params(params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    entry.run(lambda: report(params=arguments.params), arguments.params)


if __name__ == "__main__":
    main()
