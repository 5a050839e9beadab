"""The record of one measured number: the rows of reports/evaluation.json and of reports/oracle.json.

Whoever makes, tabulates or judges numbers shares this type, its file format, and the look-up by (method, degradation,
metric).
"""

import json
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from invfusion.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Record:
    """A metric of a method on a degradation.

    value: None where it could not be computed, for the reason in `unavailable`. low, high: 95% bootstrap interval.
    n: images. nfe: network calls per image. measurements_sha256: of the frozen set that every method saw.
    n_diverged: images whose trajectory diverged; they are not among the n. n_exact: images restored without any error
    at 8 bits, whose PSNR is the largest finite one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    method: str
    degradation: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    nfe: int | None
    measurements_sha256: str | None
    n_diverged: int = 0
    n_exact: int = 0
    unavailable: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is about: (method, degradation, metric)."""
        return self.method, self.degradation, self.metric

    @property
    def has_interval(self) -> bool:
        return self.value is not None and self.low is not None and self.high is not None

    def as_json(self) -> dict[str, Any]:
        """The keys of the file: fields that have a default only where they say something else."""
        return {
            f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default or f.default is MISSING
        }


AnyRecord = TypeVar("AnyRecord", bound=Record)


def by_key(records: Iterable[AnyRecord]) -> dict[tuple[str, str, str], AnyRecord]:
    """The one look-up: {(method, degradation, metric): record}."""
    return {record.key: record for record in records}


def available(records: Iterable[AnyRecord]) -> list[AnyRecord]:
    """The records that have a number."""
    return [record for record in records if record.value is not None]


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write a JSON list with one record per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(record.as_json()) for record in records)
    path.write_text(f"[\n{lines}\n]\n")


def read_records(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        DataError: it is missing, or holds something else.
    """
    try:
        return TypeAdapter(list[Record]).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); run `dvc repro evaluate` first") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path} holds no records ({place}: {first['msg']}); run `dvc repro evaluate` again") from None


def tidy(value: float) -> float:
    """Six significant digits: what a reader can use, and the same text on every run."""
    return float(f"{value:.6g}")


def listed(values: Iterable[float]) -> list[float]:
    """The points of a curve, tidy."""
    return [tidy(float(value)) for value in values]
