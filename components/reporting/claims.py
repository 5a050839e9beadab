"""The orderings that the paper claims, checked against our numbers: holds, does not hold, or cannot be tested here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from components.reporting import tables
from components.reporting.experiments import ClaimConfig
from components.reporting.tables import Record

Verdict = Literal["holds", "holds, intervals overlap", "does not hold", "cannot be tested here"]
Lookup = Mapping[tuple[str, str, str], Record]


@dataclass(frozen=True)
class Finding:
    """How one claim came out on one degradation; numbers: what was compared, in words."""

    claim: str
    degradation: str
    verdict: Verdict
    numbers: str


def findings(
    claims: Iterable[ClaimConfig], rows: Sequence[str], kinds: Sequence[str], records: Iterable[Record]
) -> list[Finding]:
    """Every claim on every degradation that it is about."""
    lookup = {(r["method"], r["degradation"], r["metric"]): r for r in records}
    return [
        _finding(claim, rows, kind, lookup) for claim in claims for kind in kinds if not claim.on or kind in claim.on
    ]


def _finding(claim: ClaimConfig, rows: Sequence[str], kind: str, lookup: Lookup) -> Finding:
    ours_by, theirs_by = _metrics(claim, rows, kind, lookup)
    ours = lookup.get((claim.better, kind, ours_by))
    others = [lookup.get((name, kind, theirs_by)) for name in claim.than or [n for n in rows if n != claim.better]]
    found = [r for r in others if r is not None and tables.is_number(r["value"])]
    if ours is None or not tables.is_number(ours["value"]) or not found or (claim.than and len(found) < len(others)):
        return Finding(claim.text, tables.name_of(kind), "cannot be tested here", _why_not(claim, kind, lookup, ours))
    sign = 1 if ours_by in tables.HIGHER_IS_BETTER else -1
    rival = max(found, key=lambda r: sign * r["value"])
    return Finding(claim.text, tables.name_of(kind), _verdict(claim, ours, rival, sign), _numbers(ours, rival))


def _metrics(claim: ClaimConfig, rows: Sequence[str], kind: str, lookup: Lookup) -> tuple[str, str]:
    """The metrics to compare: the stand-ins over pixel features where there are no Inception features."""
    asked = claim.metric, claim.than_metric or claim.metric
    there = {m for row in rows for m in asked if (r := lookup.get((row, kind, m))) and tables.is_number(r["value"])}
    if set(asked) <= there:
        return asked
    return tables.STAND_INS.get(asked[0], asked[0]), tables.STAND_INS.get(asked[1], asked[1])


def _verdict(claim: ClaimConfig, ours: Record, rival: Record, sign: int) -> Verdict:
    if claim.within is not None:
        return "holds" if abs(ours["value"] - rival["value"]) <= claim.within else "does not hold"
    if sign * (ours["value"] - rival["value"]) <= 0:
        return "does not hold"
    known = tables.has_interval(ours) and tables.has_interval(rival)
    apart = known and (ours["low"] > rival["high"] or ours["high"] < rival["low"])
    return "holds" if apart else "holds, intervals overlap"


def _numbers(ours: Record, rival: Record) -> str:
    return f"{_told(ours)} against {_told(rival)}"


def _told(record: Record) -> str:
    cell = tables.cell(record)
    interval = f" ({cell.interval})" if cell.interval else ""
    return f"{record['method']} {tables.metric_name(record['metric'])} {cell.text}{interval}"


def _why_not(claim: ClaimConfig, kind: str, lookup: Lookup, ours: Record | None) -> str:
    for name in (claim.better, *claim.than):
        record = lookup.get((name, kind, claim.metric))
        if record is not None and record.get("unavailable"):
            return str(record["unavailable"])
    missing = claim.better if ours is None else ", ".join(claim.than)
    return f"no {tables.metric_name(claim.metric)} of {missing}"
