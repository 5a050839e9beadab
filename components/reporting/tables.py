"""The report's tables: evaluation records in the paper's layout, with its numbers where they mean the same."""

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invfusion.noise import GaussianNoise, NoiseConfig

Record = Mapping[str, Any]

# Method -> (name in the tables, group, name in the paper's tables). The order is the order of the rows.
METHODS: dict[str, tuple[str, str, str | None]] = {
    "H_pinv y": ("H†y, the measurement", "Without a model", None),
    "DDRM": ("DDRM", "Zero-shot methods", "DDRM"),
    "DDNM": ("DDNM", "Zero-shot methods", "DDNM"),
    "DPS": ("DPS", "Zero-shot methods", "DPS"),
    "PiGDM": ("ΠGDM", "Zero-shot methods", "PiGDM"),
    "DAPS": ("DAPS", "Zero-shot methods", "DAPS"),
    "MGPS": ("MGPS", "Zero-shot methods", "MGPS"),
    "Unconditional": ("Unconditional", "Training-based methods", "Unconditional"),
    "Palette": ("Palette", "Training-based methods", "Palette"),
    "InDI": ("InDI", "Training-based methods", "InDI"),
    "InvFusion": ("InvFusion", "Training-based methods", "InvFusion"),
    "Palette MMSE": ("Palette, one step", "MMSE predictors (training-based)", "Palette MMSE"),
    "InvFusion MMSE": ("InvFusion, one step", "MMSE predictors (training-based)", "InvFusion MMSE"),
    "MMSE": ("InvFusion, distilled", "MMSE predictors (training-based)", "InvFusion trained for MMSE"),
    "NPPC": ("InvFusion NPPC, mean", "MMSE predictors (training-based)", None),
}
DEGRADATIONS = {
    "strided_motion_blur": "Strided motion blur",
    "patch_inpainting": "Patch in-painting",
    "matrix": "Matrix operator",
    "box_outpainting": "Box out-painting",
    "box_inpainting": "Box in-painting",
    "unconditional": "Unconditional",
    "null": "No measurement",
}
UNCONDITIONAL = ("unconditional", "null")
METRICS = {
    "psnr": "PSNR",
    "fid": "FID",
    "cfid": "CFID",
    "fd_pixel8x8": "FD-px8",
    "cfd_pixel8x8": "CFD-px8",
    "consistency_mse": "cons.·10³",
    "consistency_sse": "cons. sum",
    "lpips": "LPIPS",
    "kid": "KID",
    "kd_pixel8x8": "KD-px8",
    "nppc_captured_energy": "captured energy",
    "nppc_std_ratio": "std ratio",
    "tarp_gap": "TARP gap",
    "coverage_90": "90% covers",
    "std_ratio": "std ratio",
}
# Over pixels averaged to 8x8, where there are no Inception features.
STAND_INS = {"fid": "fd_pixel8x8", "cfid": "cfd_pixel8x8", "kid": "kd_pixel8x8"}
# The columns of the main tables; where Inception features are at hand, they take the place of the pixel features.
MAIN_METRICS = ("psnr", "fid", "cfid", "fd_pixel8x8", "cfd_pixel8x8", "consistency_mse")
INSTEAD_OF_INCEPTION = {stand_in: metric for metric, stand_in in STAND_INS.items()}
HIGHER_IS_BETTER = {"psnr", "nppc_captured_energy"}
NO_DIRECTION = {"nppc_std_ratio", "coverage_90", "std_ratio"}
NO_RIVAL = {"H_pinv y"}
# Metrics that mean the same here and in the paper.
SHARED_WITH_PAPER = ("psnr", "fid", "cfid", "lpips")
# Those that it names otherwise, and its unit in ours. Its consistency is a sum over measurements.
NAMED_OTHERWISE = {"kid": ("kid_x1e3", 1e-3), "consistency_sse": ("consistency_mse", 1.0)}
PAPER_FILE = Path(__file__).with_name("paper_tables.csv")
PAPER_DATASETS = {"ffhq64": "FFHQ64", "imagenet64": "ImageNet64", "ffhq256": "FFHQ256"}


@dataclass(frozen=True)
class Cell:
    """One number as it is shown, its interval and the paper's number beside it, empty where there is none."""

    text: str
    interval: str = ""
    paper: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    label: str
    cells: tuple[Cell, ...]
    nfe: str


@dataclass(frozen=True)
class Table:
    """A table in the paper's layout: column groups (degradations) over metrics, row groups over methods."""

    column_groups: tuple[tuple[str, tuple[str, ...]], ...]
    row_groups: tuple[tuple[str, tuple[Row, ...]], ...]

    @property
    def width(self) -> int:
        return 2 + sum(len(columns) for _, columns in self.column_groups)

    @property
    def starts(self) -> frozenset[int]:
        """The cells with which a column group begins."""
        sizes = [len(columns) for _, columns in self.column_groups]
        return frozenset(sum(sizes[:i]) for i in range(len(sizes)))


@dataclass(frozen=True)
class Claim:
    """The paper's ordering, InvFusion before Palette, on one degradation and metric, checked against the records."""

    degradation: str
    quantity: str
    ours: Cell
    theirs: Cell
    holds: bool
    clear: bool

    @property
    def verdict(self) -> str:
        if not self.holds:
            return "does not hold"
        return "holds" if self.clear else "holds, intervals overlap"


@dataclass(frozen=True)
class Paper:
    """The paper's numbers, looked up by what they were measured on."""

    rows: tuple[Mapping[str, str], ...]
    dataset: str | None
    by_key: Mapping[tuple[str, str, str], str]

    @classmethod
    def load(cls, path: Path, data_name: str, measured: NoiseConfig) -> "Paper":
        """The tables of the paper, for a dataset of ours. Only runs under the paper's own noise are comparable."""
        with path.open(newline="") as file:
            rows = tuple(csv.DictReader(file))
        noise = paper_noise(measured)
        dataset = PAPER_DATASETS.get(data_name.lower()) if noise else None
        matching = [row for row in rows if (row["dataset"], row["noise"]) == (dataset, noise)]
        # The first table that reports a number is the main one; later tables repeat it.
        by_key = {(r["task"], r["method"], r["metric"]): r["value"] for r in reversed(matching)}
        return cls(rows, dataset, by_key)

    def number(self, degradation: str, method: str, metric: str) -> str:
        """The paper's value of the same thing, or an empty text."""
        name = METHODS[method][2] if method in METHODS else None
        if metric not in SHARED_WITH_PAPER or name is None:
            return ""
        task = "unconditional" if degradation in UNCONDITIONAL else degradation
        return self.by_key.get((task, name, metric), "")

    def table_1(self) -> Table:
        """The paper's Table 1 (FFHQ64), for the ordering of the methods."""
        names = {paper: ours for ours, (_, _, paper) in METHODS.items() if paper}
        records = [
            {
                "method": names[row["method"]],
                "degradation": row["task"],
                "metric": row["metric"],
                "value": float(row["value"]),
                "nfe": int(row["nfe"]),
            }
            for row in self.rows
            if row["table"] == "1"
        ]
        return restoration_table(records, ("strided_motion_blur", "patch_inpainting", "matrix"), None)


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper, on the data that is ours too; empty where it is not."""

    dataset: str | None
    values: Mapping[tuple[str, str, str], str]

    @classmethod
    def load(cls, number: str, data_name: str) -> "PaperTable":
        """The numbers of a table for a dataset of ours."""
        ours = PAPER_DATASETS.get(data_name.lower())
        with PAPER_FILE.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["table"] == number and row["dataset"].split()[0] == ours]
        return cls(ours if rows else None, {(r["task"], r["method"], r["metric"]): r["value"] for r in rows})

    def number(self, degradation: str, method: str, metric: str) -> str:
        """The paper's value of the same thing, or an empty text. Its blurred measurements have another scale."""
        if metric in SHARED_WITH_PAPER:
            return self.values.get((degradation, method, metric), "")
        name, unit = NAMED_OTHERWISE.get(metric, ("", 1.0))
        text = self.values.get((degradation, method, name), "")
        if not text or (metric == "consistency_sse" and degradation == "strided_motion_blur"):
            return ""
        return f"{unit * float(text):.3g}"


def paper_layout(
    groups: Mapping[str, Sequence[str]],
    degradations: Sequence[str],
    metrics: Sequence[str],
    records: Sequence[Record],
    paper: PaperTable,
    paper_names: Mapping[str, str],
) -> Table:
    """A table of the paper with our numbers: these rows and metrics in this order, the paper's numbers beside.

    A metric over Inception features is replaced by its stand-in where nothing has it; a missing number is a dash.
    """
    lookup = {(r["method"], r["degradation"], r["metric"]): r for r in records if is_number(r["value"])}
    columns = [(d, at_hand(metrics, [r for r in records if r["degradation"] == d])) for d in degradations]
    rows = {
        group: tuple(_layout_row(name, columns, lookup, paper, paper_names[name]) for name in names)
        for group, names in groups.items()
    }
    heads = tuple((name_of(d), tuple(f"{metric_name(m)}{arrow(m)}" for m in ms)) for d, ms in columns)
    return Table(heads, tuple(rows.items()))


def at_hand(metrics: Sequence[str], records: Iterable[Record]) -> list[str]:
    """The metrics, with stand-ins for those that no record has a number of."""
    there = {r["metric"] for r in records if is_number(r["value"])}
    return [STAND_INS[m] if m not in there and STAND_INS.get(m) in there else m for m in metrics]


def _layout_row(
    name: str,
    columns: Sequence[tuple[str, Sequence[str]]],
    lookup: Mapping[tuple[str, str, str], Record],
    paper: PaperTable,
    paper_name: str,
) -> Row:
    cells, nfe = [], set()
    for degradation, metrics in columns:
        for metric in metrics:
            record = lookup.get((name, degradation, metric))
            beside = paper.number(degradation, paper_name, metric)
            if record is None:
                cells.append(Cell("–", paper=beside))
                continue
            nfe.add(record["nfe"])
            rivals = [r["value"] for (_, *key), r in lookup.items() if key == [degradation, metric]]
            cells.append(cell(record, beside, best=is_best(record["value"], rivals, metric)))
    return Row(name, tuple(cells), "/".join(str(n) for n in sorted(nfe)) or "–")


def reasons(records: Iterable[Record]) -> list[str]:
    """What could not be computed, and why: metrics that lack the same thing together."""
    found: dict[str, list[str]] = {}
    for record in records:
        if not is_number(record["value"]):
            name = metric_name(record["metric"])
            members = found.setdefault(str(record.get("unavailable", "no value")), [])
            members.extend([name] if name not in members else [])
    return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def paper_noise(noise: NoiseConfig) -> str | None:
    """What the paper's tables call this noise, if they have it."""
    if noise.is_absent:
        return "none"
    return "gaussian sigma_n=0.1" if noise == GaussianNoise(sigma_y=(0.1, 0.1)) else None


def restoration_table(records: Iterable[Record], degradations: Sequence[str], paper: Paper | None) -> Table:
    """Rows are methods, column groups are degradations with every metric that is available in one of them."""
    chosen = [r for r in records if r["degradation"] in degradations and is_number(r["value"])]
    groups = [(d, metrics_in([r for r in chosen if r["degradation"] == d])) for d in degradations]
    groups = [(d, metrics) for d, metrics in groups if metrics]
    methods = ordered({r["method"] for r in chosen}, METHODS)
    lookup = {(r["method"], r["degradation"], r["metric"]): r for r in chosen}
    rows = [_row(method, groups, lookup, paper) for method in methods]
    return Table(
        tuple((name_of(d), tuple(f"{metric_name(m)}{arrow(m)}" for m in metrics)) for d, metrics in groups),
        _grouped(methods, rows),
    )


def _row(
    method: str,
    groups: Sequence[tuple[str, Sequence[str]]],
    lookup: Mapping[tuple[str, str, str], Record],
    paper: Paper | None,
) -> Row:
    cells, nfe = [], set()
    for degradation, metrics in groups:
        for metric in metrics:
            record = lookup.get((method, degradation, metric))
            if record is None:
                cells.append(Cell("–"))
                continue
            nfe.add(record["nfe"])
            rivals = [
                r["value"]
                for (rival, *key), r in lookup.items()
                if key == [degradation, metric] and rival not in NO_RIVAL
            ]
            beside = paper.number(degradation, method, metric) if paper else ""
            cells.append(cell(record, beside, best=method not in NO_RIVAL and is_best(record["value"], rivals, metric)))
    return Row(label(method), tuple(cells), "/".join(str(n) for n in sorted(n for n in nfe if n is not None)) or "–")


def _grouped(methods: Sequence[str], rows: Sequence[Row]) -> tuple[tuple[str, tuple[Row, ...]], ...]:
    groups: dict[str, list[Row]] = {}
    for method, row in zip(methods, rows, strict=True):
        groups.setdefault(METHODS[method][1] if method in METHODS else "Other methods", []).append(row)
    return tuple((name, tuple(members)) for name, members in groups.items())


# What is compared: its name, the suffix of the two methods, the metric.
COMPARED = (
    ("PSNR of samples", "", "psnr"),
    ("PSNR of the one-step mean", " MMSE", "psnr"),
    ("Consistency of samples·10³", "", "consistency_mse"),
)


def claims(records: Iterable[Record], degradations: Sequence[str]) -> list[Claim]:
    """Does InvFusion come before Palette, degradation by degradation?"""
    lookup = {(r["method"], r["degradation"], r["metric"]): r for r in records if is_number(r["value"])}
    return [
        _claim(ours, theirs, quantity)
        for degradation in degradations
        for quantity, suffix, metric in COMPARED
        if (ours := lookup.get((f"InvFusion{suffix}", degradation, metric)))
        and (theirs := lookup.get((f"Palette{suffix}", degradation, metric)))
    ]


def _claim(ours: Record, theirs: Record, quantity: str) -> Claim:
    sign = 1 if ours["metric"] in HIGHER_IS_BETTER else -1
    better = sign * (ours["value"] - theirs["value"]) > 0
    known = has_interval(ours) and has_interval(theirs)
    apart = known and (ours["low"] > theirs["high"] or ours["high"] < theirs["low"])
    return Claim(name_of(ours["degradation"]), quantity, cell(ours), cell(theirs), better, apart)


def claim_grid(found: Iterable[Claim]) -> dict[str, dict[str, Claim]]:
    """{degradation: {quantity: claim}}, for a table with one row per degradation."""
    grid: dict[str, dict[str, Claim]] = {}
    for claim in found:
        grid.setdefault(claim.degradation, {})[claim.quantity] = claim
    return grid


def cell(record: Record, paper: str = "", best: bool = False) -> Cell:
    """A record as it is shown; an interval that rounds to one number says nothing and is left out."""
    show = formatter(record["metric"])
    low, high = (show(record["low"]), show(record["high"])) if has_interval(record) else ("", "")
    # A dash beside a minus sign reads badly.
    between = " to " if "-" in low + high else "–"
    return Cell(show(record["value"]), f"{low}{between}{high}" if low != high else "", paper, best)


def formatter(metric: str) -> Callable[[float], str]:
    """How the values of a metric are written; consistency in thousandths."""
    if metric in ("psnr", "fid", "cfid"):  # one decimal, as in the paper
        return lambda value: f"{value:.1f}"
    return (lambda value: short(1000 * value)) if metric == "consistency_mse" else short


def short(value: float) -> str:
    """About three significant digits, at most three of them behind the point: 1234, 12.3, 1.23, 0.012, <0.001."""
    if 0 < abs(value) < 1e-3:
        return "<0.001"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{digits}f}" if value else "0"


def is_best(value: float, rivals: Sequence[float], metric: str) -> bool:
    """Whether a value leads its column."""
    return len(rivals) > 1 and value == (max(rivals) if metric in HIGHER_IS_BETTER else min(rivals))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def has_interval(record: Record) -> bool:
    return is_number(record.get("low")) and is_number(record.get("high"))


def metrics_in(records: Iterable[Record]) -> list[str]:
    """The metrics of some records, in the order of the paper, ours behind."""
    return ordered({r["metric"] for r in records}, METRICS)


def ordered(found: set[str], known: Iterable[str]) -> list[str]:
    """The known names in their order, then the unknown ones by name."""
    listed = [name for name in known if name in found]
    return listed + sorted(found - set(listed))


def label(method: str) -> str:
    return METHODS[method][0] if method in METHODS else method


def name_of(degradation: str) -> str:
    return DEGRADATIONS.get(degradation, degradation.replace("_", " ").capitalize())


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)


def arrow(metric: str) -> str:
    if metric in NO_DIRECTION:
        return ""
    return "↑" if metric in HIGHER_IS_BETTER else "↓"


def is_main(record: Record, records: Iterable[Record]) -> bool:
    """Whether a record belongs into the main tables, rather than into the further metrics."""
    standard = INSTEAD_OF_INCEPTION.get(record["metric"])
    replaced = standard and any(r["metric"] == standard and is_number(r["value"]) for r in records)
    return record["metric"] in MAIN_METRICS and not replaced
