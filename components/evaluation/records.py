"""From the values of single images to the records of reports/evaluation.json."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components import records as record_files
from components.records import Record, available, tidy
from invfusion.metrics import (
    FeatureStatistics,
    frechet_distance_from,
    kernel_distance_from,
    mean_interval,
    psnr_ceiling,
    statistic_interval,
    uniformity_gap,
)
from invfusion.rng import generator

# name -> values of n images, (n, ...)
Values = Mapping[str, Tensor]

# Features -> the names of Frechet distance, Frechet distance after projection, and kernel distance over them.
SET_METRICS = {"pixel8x8": ("fd_pixel8x8", "cfd_pixel8x8", "kd_pixel8x8"), "inception": ("fid", "cfid", "kid")}
IMAGE_METRICS = ("psnr", "consistency_mse", "consistency_sse", "lpips", "nppc_captured_energy")
# A distance between sets costs an eigenvalue problem per resample.
MAX_SET_RESAMPLES = 100


@dataclass(frozen=True)
class Cell:
    """One method on one measurement set: the values of its n images, and what they cost."""

    method: str
    degradation: str
    values: Values
    nfe: int
    measurements_sha256: str
    image_shape: tuple[int, ...]
    n_diverged: int = 0

    @property
    def n(self) -> int:
        return len(next(iter(self.values.values()))) if self.values else 0


@dataclass(frozen=True)
class Recorder:
    """Turns cells into records. references: features of the reference images; seed and resamples of the bootstrap."""

    references: Mapping[str, Tensor]
    resamples: int
    seed: int

    def records(self, cell: Cell) -> list[Record]:
        """Every metric whose values the cell holds."""
        found = [self._mean(cell, name) for name in IMAGE_METRICS if name in cell.values]
        for features, (frechet, projected, kernel) in SET_METRICS.items():
            if (values := cell.values.get(f"features/{features}")) is not None:
                found += [self._frechet(cell, frechet, features, values), self._kernel(cell, kernel, features, values)]
            if (values := cell.values.get(f"projected/{features}")) is not None:
                found.append(self._frechet(cell, projected, features, values))
        if "nppc_predicted" in cell.values:
            predicted, actual = cell.values["nppc_predicted"].sum(1), cell.values["nppc_actual"].sum(1)
            found.append(self._std_ratio(cell, "nppc_std_ratio", predicted, actual))
        return found

    def calibration(self, cell: Cell) -> list[Record]:
        """The records of repeated draws, whose values are those of `calibration.judge_draws`."""
        uniform = cell.values["tarp_ranks"]
        return [
            self._of_set(cell, "tarp_gap", lambda weights: uniformity_gap(uniform, weights)),
            self._mean(cell, "coverage_90"),
            self._std_ratio(cell, "std_ratio", cell.values["predicted"], cell.values["actual"]),
        ]

    def _mean(self, cell: Cell, name: str) -> Record:
        values = cell.values[name]
        if len(values) == 0:
            return unavailable(cell, name, _DIVERGED)
        exact = int(values.isinf().sum())
        values = values.clamp(max=psnr_ceiling(cell.image_shape)) if name == "psnr" else values
        low, high = mean_interval(values, self.resamples, self._generator(cell))
        return replace(record(cell, name, float(values.mean()), low, high), n_exact=exact)

    def _frechet(self, cell: Cell, name: str, features: str, values: Tensor) -> Record:
        distance = frechet_distance_from(FeatureStatistics.of(self.references[features]))
        return self._of_set(cell, name, lambda weights: distance(FeatureStatistics.of(values, weights)))

    def _kernel(self, cell: Cell, name: str, features: str, values: Tensor) -> Record:
        return self._of_set(cell, name, kernel_distance_from(self.references[features], values))

    def _of_set(self, cell: Cell, name: str, statistic: Callable[[Tensor], float]) -> Record:
        if cell.n < 2:
            return unavailable(cell, name, _DIVERGED)
        value = statistic(torch.ones(cell.n, dtype=torch.float64))
        count = min(self.resamples, MAX_SET_RESAMPLES)
        return record(cell, name, value, *statistic_interval(statistic, value, cell.n, count, self._generator(cell)))

    def _std_ratio(self, cell: Cell, name: str, predicted: Tensor, actual: Tensor) -> Record:
        """Predicted over actual deviation, from variances (n,) and squared errors (n,)."""
        return self._of_set(cell, name, lambda weights: float(((weights @ predicted) / (weights @ actual)).sqrt()))

    def _generator(self, cell: Cell) -> torch.Generator:
        # All methods on one set are resampled alike, so that their intervals can be compared.
        return generator(self.seed, "evaluate/bootstrap", cell.degradation)


_DIVERGED = "nearly every image of the set diverged"


def record(cell: Cell, metric: str, value: float, low: float, high: float) -> Record:
    """One record with numbers; a number that is not finite says so in place of its value."""
    if not math.isfinite(value):
        return unavailable(cell, metric, f"not finite ({value}): the restorations hold infinite or undefined pixels")
    return _made(cell, metric, value=tidy(value), low=tidy(low), high=tidy(high))


def unavailable(cell: Cell, metric: str, reason: str) -> Record:
    """One record of a number that could not be computed."""
    return _made(cell, metric, value=None, low=None, high=None, unavailable=reason)


def _made(cell: Cell, metric: str, **numbers: Any) -> Record:
    return Record(
        method=cell.method,
        degradation=cell.degradation,
        metric=metric,
        n=cell.n,
        nfe=cell.nfe,
        measurements_sha256=cell.measurements_sha256,
        n_diverged=cell.n_diverged,
        **numbers,
    )


def file_name(method: str) -> str:
    """A method's name as a file's: "Palette MMSE" is palette_mmse."""
    return re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")


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
