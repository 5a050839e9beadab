"""The paper's numbers, which stand beside ours where they mean the same thing on the same data."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from components.records import Record
from invfusion.degradations import DegradationFamily, members_of
from invfusion.names import kind_of
from invfusion.noise import AnyNoise, GaussianNoise

FILE = Path(__file__).with_name("paper_tables.csv")
DATASETS = {"ffhq64": "FFHQ64", "imagenet64": "ImageNet64", "ffhq256": "FFHQ256"}
# Our name of a metric -> its name there, and its unit in ours. Its consistency is a sum over measurements.
METRICS_THERE = {name: (name, 1.0) for name in ("psnr", "fid", "cfid", "lpips")} | {
    "kid": ("kid_x1e3", 1e-3),
    "consistency_sse": ("consistency_mse", 1.0),
}
WITHOUT_TRAINING = frozenset({"DDRM", "DDRM (10 steps)", "DDNM", "DPS", "PiGDM", "DAPS", "MGPS", "ASeq-DIP"})
# Under its own law of blur the published code takes an inverse that is not exact, in the adjoint's place too; these
# methods, and projections, take the exact ones here.
BY_INVERSE = WITHOUT_TRAINING | {"InDI", "Unrolled DDRM"}
OF_PROJECTIONS = "cfid"
BLUR = "strided_motion_blur"


@dataclass(frozen=True)
class Paper:
    """The numbers of one of its datasets by (task, method, metric), as they are printed; empty where it has none."""

    dataset: str | None = None
    values: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    @classmethod
    def of_table(cls, number: str, data_name: str) -> "Paper":
        """One table, for a dataset of ours."""
        return cls._of(DATASETS.get(data_name.lower()), lambda row: row["table"] == number)

    @classmethod
    def of_noise(cls, noise: AnyNoise, data_name: str) -> "Paper":
        """All tables, for a dataset of ours. Only runs under the paper's own noise are comparable."""
        name = "none" if noise.is_absent else "gaussian sigma_n=0.1"
        is_shared = noise.is_absent or noise == GaussianNoise(sigma_y=(0.1, 0.1))
        return cls._of(DATASETS.get(data_name.lower()), lambda row: is_shared and row["noise"] == name)

    @classmethod
    def _of(cls, dataset: str | None, wanted: Callable[[Mapping[str, str]], bool]) -> "Paper":
        rows = [row for row in _rows() if row["dataset"].split()[0] == dataset and wanted(row)]
        # The first table that reports a number is the main one; later tables repeat it.
        values = {(row["task"], row["method"], row["metric"]): row["value"] for row in reversed(rows)}
        return cls(dataset if rows else None, values)

    def under(self, families: Iterable[DegradationFamily], learned: DegradationFamily) -> "Paper":
        """Without the numbers that are about something else here: of kinds that are drawn otherwise than in the
        published code, of models that learned to restore them from others, and of blur what rests on an exact inverse.

        families: what is evaluated; learned: what models were trained on.
        """
        unlike = {kind_of(family) for family in families if not family.is_official}
        its = {kind_of(family): family.is_official for family in members_of(learned)}

        def is_alike(kind: str, method: str, metric: str) -> bool:
            # What was not learned is restored by all that was.
            if kind in unlike or not (method in WITHOUT_TRAINING or its.get(kind, learned.is_official)):
                return False
            return kind != BLUR or (method not in BY_INVERSE and metric != OF_PROJECTIONS)

        return Paper(self.dataset, {key: value for key, value in self.values.items() if is_alike(*key)})

    def number(self, degradation: str, method: str, metric: str) -> str:
        """The paper's value of the same thing, or an empty text. Its blurred measurements have another scale."""
        name, unit = METRICS_THERE.get(metric, ("", 1.0))
        text = self.values.get((degradation, method, name), "")
        if not text or (metric == "consistency_sse" and degradation == BLUR):
            return ""
        return text if name == metric else f"{unit * float(text):.3g}"


NOT_IN_PAPER = Paper()


def table_1() -> list[Record]:
    """The numbers of the paper's Table 1 (FFHQ64)."""
    return [
        Record(
            method=row["method"], degradation=row["task"], metric=row["metric"], value=float(row["value"]),
            low=None, high=None, n=10_000, nfe=int(row["nfe"]), measurements_sha256=None,
        )
        for row in _rows()
        if row["table"] == "1"
    ]  # fmt: skip


def _rows() -> list[dict[str, str]]:
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))
