"""The records of reports/oracle.json and the curves beside them; what was computed is kept until the inputs change."""

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from components.code import code_digest
from components.memo import Memo
from components.records import tidy
from invfusion.metrics import coverage, cumulative
from invfusion.oracle import Verdict
from invfusion.schema import Config

Record = dict[str, Any]
# "records" and "curves", in order.
Results = dict[str, list[Record]]

Job = Callable[[], Results]

STATE = Path("state/oracle")
# The code that judges.
_CODE = ("components.oracle.models", "components.oracle.records", "invfusion.oracle", "invfusion.samplers")
LEVELS = torch.linspace(0, 1, 41, dtype=torch.float64)


def kept(facts: dict[str, Any], compute: Callable[[], Results]) -> Results:
    """The results for these facts and this code: from disk, or computed and written there."""
    return Memo(STATE).data(facts | {"code": code_digest(*_CODE)}, compute)


def in_parallel(jobs: Sequence[Job]) -> list[Results]:
    """The results of all jobs in order, on as many processes as there are cores, each with one thread."""
    n = min(os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(job) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(futures), desc="oracle", unit="job", disable=None):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
    return [future.result() for future in futures]


def kind_of(section: Config) -> str:
    """The name by which a member of a tagged union goes."""
    kind: str = type(section).model_fields["kind"].default
    return kind


def merged(parts: Sequence[Results]) -> Results:
    """All records and curves in order."""
    return {name: [entry for part in parts for entry in part[name]] for name in ("records", "curves")}


def record(
    cell: Record,
    metric: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    floor: float | None = None,
) -> Record:
    """One number of a cell; one that is not finite says so in place of its value."""
    head, tail = cell | {"metric": metric}, {"floor": None if floor is None else tidy(floor)}
    if not math.isfinite(value):
        gone = {"value": None, "low": None, "high": None, **tail, "ratio": None}
        return head | gone | {"unavailable": f"not finite ({value}): draws are infinite or undefined"}
    bounds = {"low": None if low is None else tidy(low), "high": None if high is None else tidy(high)}
    return head | {"value": tidy(value)} | bounds | tail | {"ratio": tidy(value / floor) if floor else None}


def unavailable(cell: Record, metric: str, reason: str) -> Record:
    """One number that could not be computed."""
    nothing = dict.fromkeys(("value", "low", "high", "floor", "ratio"))
    return cell | {"metric": metric} | nothing | {"unavailable": reason}


def of_verdict(cell: Record, verdict: Verdict) -> Results:
    """The scores of a candidate as records, and its calibration as curves over LEVELS."""
    records = [record(cell, name, s.value, s.low, s.high, s.floor) for name, s in verdict.scores.items()]
    curves = {
        "tarp": _listed(cumulative(verdict.tarp_ranks, LEVELS)),
        "coverage": _listed(coverage(verdict.pixel_ranks, LEVELS)),
    }
    return {"records": records, "curves": [cell | curves]}


def _listed(values: Tensor) -> list[float]:
    return [tidy(value) for value in values.tolist()]


def write(results: Results, flat: Path, curves: Path) -> None:
    """One record per line, and the curves beside them."""
    for path, entries in ((flat, results["records"]), (curves, results["curves"])):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(entry) for entry in entries)
        path.write_text(f"[\n{lines}\n]\n")
