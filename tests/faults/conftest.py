"""Faults, tried often: `make faults` runs all of them at full size and writes docs/faults.md; the ordinary run of the
tests tries a few.
"""

import sys
from collections.abc import Callable, Iterator

import pytest
from fault_report import IS_FULL, ROOT, Row

REPORT = ROOT / "docs" / "faults.md"

for _folder in ("unit/training", "unit/data", "flows"):
    sys.path.append(str(ROOT / "tests" / _folder))

HEAD = """# Faults

What `make faults` did on purpose, how often, and what was lost. "Nothing" means: after the same command was run again,
weights, EMA, loss log and results equal those of an undisturbed run, byte for byte (CPU).

| fault | tried | lost |
|---|---|---|
"""


@pytest.fixture(scope="session")
def rows() -> Iterator[list[Row]]:
    found: list[Row] = []
    yield found
    if IS_FULL and found:
        # Lines of faults that were not tried this time stay.
        before = REPORT.read_text().split("|---|---|---|\n")[-1].splitlines() if REPORT.exists() else []
        lines = {line.split(" | ")[0]: line for line in before}
        lines |= {f"| {row.fault}": f"| {row.fault} | {row.tried:,} | {row.lost} |" for row in found}
        REPORT.write_text(HEAD + "\n".join(lines[fault] for fault in sorted(lines)) + "\n")


@pytest.fixture
def note(rows: list[Row]) -> Callable[[str, int, str], None]:
    """Write a line of the report: what was tried, how often, what was lost."""

    def write(fault: str, tried: int, lost: str = "nothing") -> None:
        rows.append(Row(fault, tried, lost))

    return write


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether everything is to be tried."""
    return IS_FULL


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "full_size" in item.keywords and not IS_FULL:
            item.add_marker(pytest.mark.skip(reason="part of `make faults`"))
