"""Write the report: one page of tables, galleries and curves."""

from pathlib import Path

from prefect import flow

from components.reporting.report import report as component
from flows import entry


@flow(name="report")
def report(params: str = "params.yaml") -> Path:
    """Write the report: one page of tables, galleries and curves."""
    return entry.step(component, params)


if __name__ == "__main__":
    entry.command_line(report, __doc__)
