"""Which of two numbers is better: a paired comparison, with three outcomes where it can be made at all.

All methods restore the same images from the same measurements with the same noise. So two are compared by their values'
mean difference over images, with its 95% bootstrap interval; where that contains 0, nothing is decided. Distances
between sets have no values of images, but the same images were resampled for both: the interval is that of their
differences. Where images of one diverged, and of repeated draws, of which other images may, the difference lies between
the extremes that the two intervals allow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import inf
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from components.paths import file_name
from components.records import Record, by_key
from components.reporting import tables
from components.reporting.experiments import ClaimConfig
from invfusion.metrics import METRICS
from invfusion.metrics.tools.bootstrap import interval_of, resampled
from invfusion.rng import generator

Outcome = Literal["holds", "does not hold", "undecided", "cannot be tested here"]
Key = tuple[str, str, str]
STYLES: dict[Outcome, str] = {
    "holds": "holds", "does not hold": "fails", "undecided": "weak", "cannot be tested here": "weak"
}  # fmt: skip
WORDS: dict[Outcome, str] = {
    "does not hold": "loses to", "holds": "wins against", "undecided": "is undecided against"
}  # fmt: skip
MARKS = {"holds": "✓", "fails": "✗", "weak": "?"}
RESAMPLES = 1000


@dataclass(frozen=True)
class Verdict:
    """Whether ours is better than theirs: their difference with its interval, in the metric's own units, or a reason.

    n: images that were paired; 0 where two intervals were compared.
    """

    outcome: Outcome
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    n: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
    """The records of an evaluation, and the folder with the values of single images."""

    records: Sequence[Record]
    scores: Path
    loaded: dict[Path, dict[str, Tensor]] = field(default_factory=dict)

    @cached_property
    def by_key(self) -> dict[Key, Record]:
        return by_key(self.records)

    def values(self, key: Key) -> Tensor | None:
        """The values of single images (n,), in the order of the measurement set, or of a distance between sets those
        over resampled images (R,); None where there are none."""
        method, degradation, metric = key
        path = self.scores / degradation / f"{file_name(method)}.safetensors"
        if path not in self.loaded:
            self.loaded[path] = load_file(path) if path.is_file() else {}
        found = self.loaded[path].get(metric)
        return None if found is None or bool(found.isnan().all()) else found

    def compare(self, ours: Key, theirs: Key, within: float | None = None) -> Verdict:
        """Whether `ours` is better than `theirs`; with `within`, whether they differ by no more than that."""
        records = [self.by_key.get(key) for key in (ours, theirs)]
        if any(record is None or record.value is None for record in records):
            pairs = zip((ours, theirs), records, strict=True)
            return Verdict("cannot be tested here", reason=next(r for k, v in pairs if (r := _why_not(k, v))))
        if isinstance(METRICS[ours[2]].better, float):
            return Verdict(
                "cannot be tested here", reason=f"{METRICS[ours[2]].label} is not ordered: it has a best value"
            )
        a, b = (record for record in records if record is not None)
        if a.measurements_sha256 != b.measurements_sha256:
            return Verdict("cannot be tested here", reason="they were measured on different measurements")
        difference, low, high, n = self._difference(a, b)
        return Verdict(_outcome(ours[2], low, high, within), difference, low, high, n)

    def _difference(self, a: Record, b: Record) -> tuple[float, float, float, int]:
        """Of two numbers, with its interval and the images that were paired."""
        ours, theirs = self.values(a.key), self.values(b.key)
        assert a.value is not None
        assert b.value is not None
        of_set = METRICS[a.metric].statistic is not None
        if ours is not None and theirs is not None:
            if of_set and a.n == b.n and not (a.n_diverged or b.n_diverged or METRICS[a.metric].judges_draws):
                return a.value - b.value, *interval_of(ours - theirs), a.n
            if not of_set and int((ours - theirs).isfinite().sum()) > 1:
                return paired_difference(ours - theirs, a.degradation)
        if a.low is None or a.high is None or b.low is None or b.high is None:
            return a.value - b.value, -inf, inf, 0
        return a.value - b.value, a.low - b.high, a.high - b.low, 0


def paired_difference(differences: Tensor, degradation: str) -> tuple[float, float, float, int]:
    """Mean of the finite ones of differences (n,), its 95% bootstrap interval over images, and how many these are."""
    counts = _resampled(len(differences), degradation).double()
    there = differences.isfinite()
    means = (counts @ differences.where(there, 0)) / (counts @ there.double()).clamp(min=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return float(differences[there].mean()), low, high, int(there.sum())


@lru_cache(maxsize=8)
def _resampled(n: int, degradation: str) -> Tensor:
    """How often each of n images is drawn, (RESAMPLES, n) uint8: the same for all comparisons on one degradation."""
    return resampled(n, RESAMPLES, generator(0, "report/paired", degradation)).to(torch.uint8)


def _outcome(metric: str, low: float, high: float, within: float | None) -> Outcome:
    """What the interval of a difference decides."""
    if within is not None:
        inside, outside = -within <= low and high <= within, high < -within or low > within
        return "holds" if inside else "does not hold" if outside else "undecided"
    if METRICS[metric].better == "lower":
        low, high = -high, -low
    return "holds" if low > 0 else "does not hold" if high < 0 else "undecided"


def _why_not(key: Key, record: Record | None) -> str:
    """Why there is no number; empty where there is one."""
    if record is None:
        return f"no {METRICS[key[2]].label} of {tables.label(key[0])}"
    return "" if record.value is not None else record.unavailable or "no value"


# The paper's claims.


@dataclass(frozen=True)
class Finding:
    """How one claim came out on one degradation; numbers: what was compared, in words."""

    claim: str
    degradation: str
    verdict: Outcome
    numbers: str


def findings(
    claims: Iterable[ClaimConfig], rows: Sequence[str], kinds: Sequence[str], evidence: Evidence
) -> list[Finding]:
    """Every claim on every degradation that it is about."""
    return [
        _finding(claim, rows, kind, evidence) for claim in claims for kind in kinds if not claim.on or kind in claim.on
    ]


def _finding(claim: ClaimConfig, rows: Sequence[str], kind: str, evidence: Evidence) -> Finding:
    """A claim is as good as its worst comparison. One about all rows does without those that have no number."""
    ours, metric = (claim.better, kind, claim.metric), claim.than_metric or claim.metric
    rivals = [(name, kind, metric) for name in claim.than or rows if claim.than or name != claim.better]
    verdicts = {rival: evidence.compare(ours, rival, claim.within) for rival in rivals}
    tested = {rival: v for rival, v in verdicts.items() if v.outcome != "cannot be tested here"}
    if not tested or (claim.than and len(tested) < len(verdicts)):
        reason = next(v.reason for v in verdicts.values() if v.outcome == "cannot be tested here")
        return Finding(claim.text, tables.name_of(kind), "cannot be tested here", reason)
    order = ("does not hold", "undecided", "holds")
    worst = min(tested, key=lambda key: (order.index(tested[key].outcome), _gain(tested[key], claim)))
    numbers = f"{_number(evidence, ours)} against {_number(evidence, worst)}: {difference(tested[worst], claim.metric)}"
    absent = ", ".join(tables.label(key[0]) for key in verdicts if key not in tested)
    return Finding(
        claim.text,
        tables.name_of(kind),
        tested[worst].outcome,
        numbers + (f"; no number of {absent}" if absent else ""),
    )


def _gain(verdict: Verdict, claim: ClaimConfig) -> float:
    """How clearly a claim comes out: the less, the nearer to failing."""
    return -abs(verdict.difference) if claim.within is not None else METRICS[claim.metric].merit(verdict.difference)


def _number(evidence: Evidence, key: Key) -> str:
    cell = tables.cell_of(evidence.by_key[key])
    return f"{tables.label(key[0])} {METRICS[key[2]].label} {cell.text}{f' ({cell.interval})' if cell.interval else ''}"


def difference(verdict: Verdict, metric: str) -> str:
    """A difference in words, with what it rests on."""
    cell, basis = cell_of(verdict, metric), f"{verdict.n} images paired" if verdict.n else "from the two intervals"
    return f"difference {cell.text}{f' ({cell.interval})' if cell.interval else ''}, {basis}"


def cell_of(verdict: Verdict, metric: str) -> tables.Cell:
    """A difference as it is shown in a table; its style tells the outcome."""
    if verdict.outcome == "cannot be tested here":
        return tables.Cell("–")
    shown = METRICS[metric]

    def signed(value: float) -> str:
        decimals = None if shown.decimals is None else max(shown.decimals, 2)
        text = replace(shown, decimals=decimals).show(abs(value))
        return text if text in ("0", "<0.001") else f"{'+' if value > 0 else '−'}{text}"

    low, high = signed(verdict.low), signed(verdict.high)
    interval = f"{low} to {high}" if low != high and abs(verdict.low) < inf else ""
    return tables.Cell(signed(verdict.difference), interval, style=STYLES[verdict.outcome])


# One method against the others.


@dataclass(frozen=True)
class Contest:
    """One method against its rivals on some degradations. metrics: by which they compare, the headline first."""

    evidence: Evidence
    method: str
    rivals: Sequence[str]
    kinds: Sequence[str]
    metrics: Sequence[str]

    def verdict(self, rival: str, kind: str, metric: str) -> Verdict:
        return self.evidence.compare((self.method, kind, metric), (rival, kind, metric))

    def headline(self, metric: str) -> str:
        """Losses, wins and what is undecided, in one sentence; empty where there is no comparison."""
        found: dict[Outcome, dict[str, list[str]]] = {}
        for rival in self.rivals:
            for kind in self.kinds:
                outcome = self.verdict(rival, kind, metric).outcome
                found.setdefault(outcome, {}).setdefault(tables.label(rival), []).append(tables.name_of(kind).lower())
        clauses = [f"{words} {self._on(found[outcome])}" for outcome, words in WORDS.items() if outcome in found]
        return f"{tables.label(self.method)}, by {METRICS[metric].label}: {'; '.join(clauses)}." if clauses else ""

    def _on(self, rivals: dict[str, list[str]]) -> str:
        everywhere = len(self.kinds) > 1
        return ", ".join(
            f"{name} ({'everywhere' if everywhere and len(kinds) == len(self.kinds) else ', '.join(kinds)})"
            for name, kinds in rivals.items()
        )

    def table(self) -> tables.Table:
        """The differences: rivals in rows, a group of them for each metric; a column for each degradation."""
        columns = (tables.Column("Method", is_number=False), *(tables.Column(tables.name_of(k)) for k in self.kinds))
        groups = {f"{METRICS[m].label}{METRICS[m].arrow}": self._rows(m) for m in self.metrics}
        return tables.Table(
            columns,
            {name: rows for name, rows in groups.items() if rows},
            f"{tables.label(self.method)} minus each other method",
        )

    def _rows(self, metric: str) -> list[list[tables.Cell]]:
        rows = {r: [self._marked(r, kind, metric) for kind in self.kinds] for r in self.rivals}
        return [[tables.Cell(tables.label(r)), *row] for r, row in rows.items() if any(c.text != "–" for c in row)]

    def _marked(self, rival: str, kind: str, metric: str) -> tables.Cell:
        cell = cell_of(self.verdict(rival, kind, metric), metric)
        return replace(cell, text=f"{cell.text} {MARKS[cell.style]}" if cell.style else cell.text)
