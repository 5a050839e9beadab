"""From the numbers of a cell to the records of reports/evaluation.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components import records as record_files
from components.records import Record, available, tidy

# value, low, high, n_exact; of what is no mean over images also resampled
Summary = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One method on one measurement set, as all its records name it; n: images that did not diverge."""

    method: str
    degradation: str
    n: int
    n_diverged: int
    nfe: int
    measurements_sha256: str


def record(cell: Cell, metric: str, summary: Summary, n: int) -> Record:
    """One record of a number over n images; one that is not finite says so in place of its value."""
    value = summary["value"]
    if not math.isfinite(value):
        return unavailable(cell, metric, f"not finite ({value}): the restorations hold infinite or undefined pixels")
    low, high, n_exact = tidy(summary["low"]), tidy(summary["high"]), summary["n_exact"]
    head: dict[str, Any] = asdict(cell) | {"n": n}
    return Record(metric=metric, value=tidy(value), low=low, high=high, n_exact=n_exact, **head)


def unavailable(cell: Cell, metric: str, reason: str) -> Record:
    """One record of a number that could not be computed."""
    return Record(metric=metric, **asdict(cell), value=None, low=None, high=None, unavailable=reason)


def write_records(records: Sequence[Record], flat: Path, nested: Path) -> None:
    """Write the flat list, and the available numbers as {degradation: {method: {metric: value}}}."""
    record_files.write_records(records, flat)
    tree: dict[str, dict[str, dict[str, float | None]]] = {}
    for r in available(records):
        tree.setdefault(r.degradation, {}).setdefault(r.method, {})[r.metric] = r.value
    nested.write_text(json.dumps(tree, indent=1) + "\n")


def write_costs(costs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write what each cell took, one line each."""
    lines = ",\n".join(json.dumps(cost) for cost in costs)
    path.write_text(f"[\n{lines}\n]\n")
