"""The records of reports/oracle.json and the curves beside them; what was computed is kept until the inputs change."""

import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from components.code import code_digest
from components.evaluation.calibration import LEVELS
from components.memo import Memo
from components.memo import identity as named
from components.records import Record, listed, tidy, write_records
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.gaussian import GaussianPrior
from invfusion.metrics import coverage, cumulative
from invfusion.operators import Measurement
from invfusion.oracle import Verdict
from invfusion.samplers import Sampler

STATE = Path("state/oracle")


@dataclass(frozen=True, kw_only=True)
class OracleRecord(Record):
    """A number of the oracle, where the truth is known.

    judgement: "sampler" (an ideal denoiser) or "model" (a trained one). floor: what exact draws score; ratio: value
    over floor. images, width: of the training, where a record is about an estimate on the way.
    """

    measurements_sha256: str | None = None
    judgement: str
    prior: str
    settings: dict[str, Any]
    sigma_y: float
    floor: float | None
    ratio: float | None
    images: int = 0
    width: int = 0

    @property
    def cell(self) -> str:
        """The degradation with its noise level."""
        return f"{self.degradation}, σ {self.sigma_y:g}"


# What records of one candidate on one cell begin with: fields of `OracleRecord`.
Head = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """Records, and curves as JSON, in order."""

    records: list[OracleRecord] = field(default_factory=list)
    curves: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"records": [r.as_json() for r in self.records], "curves": self.curves}

    @classmethod
    def joined(cls, parts: Iterable["Results"]) -> "Results":
        parts = list(parts)
        return cls([r for part in parts for r in part.records], [c for part in parts for c in part.curves])


Job = Callable[[], Results]


def identity(facts: Mapping[str, Any], code: Iterable[str]) -> str:
    """A name made of what results depend on: facts, and the code behind some entry points."""
    return named(with_code(facts, code))


def with_code(facts: Mapping[str, Any], code: Iterable[str]) -> dict[str, Any]:
    """Facts, and the code behind some entry points."""
    return {**facts, "code": code_digest(*code)}


def kept(facts: Mapping[str, Any], code: Iterable[str], compute: Job) -> Results:
    """The results for these facts and this code: from disk, or computed and written there."""
    found = Memo(STATE).data(with_code(facts, code), lambda: compute().as_json())
    return Results([OracleRecord(**r) for r in found["records"]], found["curves"])


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


class Candidate:
    """A sampler with a denoiser, in the form that the oracle judges; nfe: the network calls of its last run."""

    def __init__(self, sampler: Sampler, denoiser: DenoiserLike | GaussianPrior) -> None:
        self.sampler, self.denoiser, self.nfe = sampler, denoiser, 0

    @torch.no_grad()
    def __call__(self, measurement: Measurement, noise: Tensor, way: Sequence[torch.Generator]) -> Tensor:
        output = self.sampler.sample(self.denoiser, measurement, noise, generators=way)
        self.nfe = output.nfe
        return output.x


def record(
    head: Head,
    metric: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    floor: float | None = None,
) -> OracleRecord:
    """One number; one that is not finite says so in place of its value."""
    if not math.isfinite(value):
        return unavailable(head, metric, f"not finite ({value}): draws are infinite or undefined", floor)
    numbers = {"value": value, "low": low, "high": high, "floor": floor, "ratio": value / floor if floor else None}
    tidied: dict[str, Any] = {name: None if number is None else tidy(number) for name, number in numbers.items()}
    return OracleRecord(**head, metric=metric, **tidied)


def unavailable(head: Head, metric: str, reason: str, floor: float | None = None) -> OracleRecord:
    """One number that could not be computed."""
    known = None if floor is None else tidy(floor)
    return OracleRecord(
        **head, metric=metric, value=None, low=None, high=None, floor=known, ratio=None, unavailable=reason
    )


def of_verdict(head: Head, verdict: Verdict) -> Results:
    """The scores of a candidate as records, and its calibration as curves over LEVELS."""
    records = [record(head, name, s.value, s.low, s.high, s.floor) for name, s in verdict.scores.items()]
    curves = {
        "tarp": listed(cumulative(verdict.tarp_ranks, LEVELS)),
        "coverage": listed(coverage(verdict.pixel_ranks, LEVELS)),
    }
    return Results(records, [head | curves])


def write(results: Results, flat: Path, curves: Path) -> None:
    """One record per line, and the curves beside them."""
    write_records(results.records, flat)
    curves.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(curve) for curve in results.curves)
    curves.write_text(f"[\n{lines}\n]\n")
