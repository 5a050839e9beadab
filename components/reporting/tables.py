"""Tables: one type for all of them, and the paper's layout, in which records stand with its numbers beside."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from components.params import UNCONDITIONAL, MethodConfig
from components.records import Record, available, by_key
from components.reporting.paper import NOT_IN_PAPER, Paper
from invfusion.metrics import METRICS
from invfusion.training.recipes import RECIPES

# What people call a method, where that is not its name.
LABELS = {"H_pinv y": "H†y", "PiGDM": "ΠGDM", "MMSE": "InvFusion distilled", "NPPC": "InvFusion NPPC (mean)"}
DEGRADATIONS = {
    "strided_motion_blur": "Strided motion blur",
    "patch_inpainting": "Patch in-painting",
    "matrix": "Matrix operator",
    "box_outpainting": "Box out-painting",
    "box_inpainting": "Box in-painting",
    UNCONDITIONAL: "Unconditional",
    "null": "No measurement",
}
GROUPS = (
    "Without a trained model",
    "Zero-shot methods",
    "Training-based methods",
    "MMSE predictors, one step (training-based)",
)


@dataclass(frozen=True)
class Cell:
    """A number as it is shown, with its interval and the paper's number beside it; style: best, holds, fails, weak."""

    text: str
    interval: str = ""
    paper: str = ""
    style: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column; columns of one group stand side by side under its name."""

    name: str
    group: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells, one per column, in named groups (a group without a name has no heading)."""

    kind: ClassVar = "table"
    columns: tuple[Column, ...]
    groups: Mapping[str, Sequence[Sequence[Cell]]]
    title: str = ""
    caption: str = ""

    @property
    def heads(self) -> list[tuple[str, list[Column]]]:
        """The columns under the names of their groups."""
        return [(group, list(columns)) for group, columns in groupby(self.columns, lambda column: column.group)]

    @property
    def starts(self) -> frozenset[int]:
        """The columns with which a group begins."""
        sizes = [len(columns) for _, columns in self.heads]
        return frozenset(sum(sizes[:i]) for i, (group, _) in enumerate(self.heads) if group)


def listing(heads: str, rows: Iterable[Sequence[object]], title: str = "", caption: str = "") -> Table:
    """A table without groups, from the heads "Name, #Number, ...": # begins a column of numbers."""
    columns = tuple(Column(head.lstrip("#"), is_number=head.startswith("#")) for head in heads.split(", "))
    cells = [[value if isinstance(value, Cell) else Cell(str(value)) for value in row] for row in rows]
    return Table(columns, {"": cells}, title, caption)


def layout(
    groups: Mapping[str, Sequence[str]],
    metrics: Mapping[str, Sequence[str]],
    records: Iterable[Record],
    paper: Paper = NOT_IN_PAPER,
    paper_names: Mapping[str, str] | None = None,
    title: str = "",
    caption: str = "",
) -> Table:
    """The paper's layout: methods in their groups over the metrics of each degradation. A missing number is a dash.

    metrics: {degradation: metrics}; paper_names: of the methods that the paper names otherwise.
    """
    found, wanted = by_key(available(records)), [(d, m) for d, names in metrics.items() for m in names]
    best = {key: _best(found.values(), *key) for key in wanted}
    columns = [Column(METRICS[m].label + METRICS[m].arrow, name_of(d)) for d, m in wanted]

    def row(method: str) -> list[Cell]:
        name = (paper_names or {}).get(method, method)
        beside = [paper.number(d, name, m) for d, m in wanted]
        records = [found.get((method, d, m)) for d, m in wanted]
        calls = sorted({r.nfe for r in records if r is not None and r.nfe is not None})
        cells = [cell_of(r, number, best) for r, number in zip(records, beside, strict=True)]
        return [Cell(label(method)), *cells, Cell("/".join(map(str, calls)) or "–")]

    rows = {group: [row(method) for method in methods] for group, methods in groups.items()}
    return Table((Column("Method", is_number=False), *columns, Column("NFE")), rows, title, caption)


def _best(records: Iterable[Record], degradation: str, metric: str) -> float | None:
    """The leading value of a column, which no stand-in has: the smallest distance over pixels is no best FID.

    H†y agrees with the measurement by construction, and is no rival in that.
    """
    if any(metric == real.stand_in for real in METRICS.values()):
        return None
    rivals = [
        METRICS[metric].merit(r.value)
        for r in records
        if r.value is not None and (r.degradation, r.metric) == (degradation, metric)
        and not (r.method == "H_pinv y" and metric.startswith("consistency"))
    ]  # fmt: skip
    return max(rivals) if len(rivals) > 1 else None


def cell_of(record: Record | None, paper: str = "", best: Mapping[tuple[str, str], float | None] | None = None) -> Cell:
    """How a record is shown; an interval that rounds to one number says nothing and is left out."""
    if record is None or record.value is None:
        return Cell("–", paper=paper)
    metric = METRICS[record.metric]
    leads = (best or {}).get((record.degradation, record.metric)) == metric.merit(record.value)
    interval = ""
    if record.low is not None and record.high is not None:
        interval = span(metric.show(record.low), metric.show(record.high))
    return Cell(metric.show(record.value), interval, paper, "best" if leads else "")


def span(low: str, high: str) -> str:
    """An interval as text; empty where both ends are written alike. A dash beside a minus sign reads badly."""
    return "" if low == high else f"{low}{' to ' if '-' in low + high or '−' in low + high else '–'}{high}"


def group_of(method: MethodConfig) -> str:
    """Where a method stands in the tables, from the model that it reads out and how."""
    if method.model is None:
        return GROUPS[0]
    if method.sampler is not None and method.sampler.follows == "mean":
        return GROUPS[3]
    recipe = RECIPES.get(method.model)
    # Without a sampler of its own, a model that sees no measurement generates.
    is_told = recipe is None or (recipe.sees_measurements and not method.withheld)
    is_zero_shot = method.sampler is not None and not is_told
    return GROUPS[1] if is_zero_shot else GROUPS[2]


def grouped(methods: Mapping[str, MethodConfig], records: Iterable[Record]) -> dict[str, list[str]]:
    """{group: methods that the records have numbers of}, in the order of params.methods."""
    found = dict.fromkeys(r.method for r in available(records))
    members = {name: group_of(methods[name]) if name in methods else "Other methods" for name in found}
    order = [*(name for name in methods if name in found), *(name for name in found if name not in methods)]
    groups = {group: [name for name in order if members[name] == group] for group in (*GROUPS, "Other methods")}
    return {group: names for group, names in groups.items() if names}


def metrics_of(records: Iterable[Record], degradations: Iterable[str]) -> dict[str, list[str]]:
    """{degradation: the metrics that the records have numbers of}."""
    found = {(r.degradation, r.metric) for r in available(records)}
    columns = {d: [m for m in METRICS if (d, m) in found] for d in degradations}
    return {d: names for d, names in columns.items() if names}


def with_stand_ins(metrics: Sequence[str], records: Iterable[Record]) -> list[str]:
    """The metrics, with stand-ins, under their own names, for those that no record has a number of."""
    there = {r.metric for r in available(records)}
    return [s if m not in there and (s := METRICS[m].stand_in) in there and s is not None else m for m in metrics]


def real_notes(scores: Iterable[Mapping[str, Any]]) -> list[str]:
    """How the true images score by metrics that compare sets: what restorations can reach, and no less."""
    found = []
    for score in scores:
        metric = METRICS[score["metric"]]
        value, low, high = (metric.show(score[key]) for key in ("value", "low", "high"))
        found.append(
            f"{metric.label}: {score['n']} held-out real images score {value} ({low} to {high}) against the same other "
            "real images. It is no FID, and no claim is judged by it."
        )
    return found


def reasons(records: Iterable[Record]) -> list[str]:
    """What could not be computed, and why: metrics that lack the same thing together."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.value is None:
            members, name = found.setdefault(record.unavailable or "no value", []), METRICS[record.metric].label
            members.extend([name] if name not in members else [])
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def label(method: str) -> str:
    return LABELS.get(method, method)


def name_of(degradation: str) -> str:
    return DEGRADATIONS.get(degradation, degradation.replace("_", " ").capitalize())
