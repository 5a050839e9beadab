"""Judge restorations by every registered metric.

What is computed is kept: the values of images by the restorations and the code of the metric, the number that they make
by the values and how it is made. So a new metric, or an edit of one, computes its own numbers and nothing else.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from components.code import code_digest
from components.evaluation.calibration import curves_of_components, curves_of_draws
from components.evaluation.images import Images
from components.evaluation.measurement_sets import MeasurementSet
from components.evaluation.methods import Method
from components.evaluation.records import Cell, Summary, record, unavailable
from components.evaluation.restoring import OF_COMPONENTS, Restored
from components.memo import Facts, Memo, Tensors, identity
from components.params import Params
from components.records import Record
from invfusion.errors import WeightsUnavailableError
from invfusion.files import sha256_of
from invfusion.metrics import METRICS, Metric, Need, Networks, Restorations, mean_interval
from invfusion.metrics.tools.bootstrap import interval_of, laid_around, resampled
from invfusion.rng import generator

log = logging.getLogger(__name__)

# The tensors of kept restorations that needs read, besides the images. Truth and draws come in other ways.
READS: dict[Need, frozenset[str]] = {
    "residual": frozenset({"residual"}),
    "projected": frozenset({"projected"}),
    "components": OF_COMPONENTS,
}
# A distance between sets costs an eigenvalue problem per resample.
MAX_SET_RESAMPLES = 100

_NOISY = "not defined for noisy measurements, to which no image is projected"
_DIVERGED = "nearly every image of the set diverged"
_DRAWS_DIVERGED = "fewer than two images of which no draw diverged"


@dataclass(frozen=True)
class Case:
    """What is judged: the restorations of one measurement set by one method."""

    method: Method
    measured: MeasurementSet
    restored: Restored

    @cached_property
    def cell(self) -> Cell:
        """What all its records say."""
        diverged = self.restored.diverged
        return Cell(
            method=self.method.name,
            degradation=self.measured.degradation,
            n=int((~diverged).sum()),
            n_diverged=int(diverged.sum()),
            nfe=self.restored.costs.nfe,
            measurements_sha256=self.measured.sha256,
        )

    @property
    def has_draws(self) -> bool:
        """Whether there are repeated draws whose spread means something."""
        return self.measured.has_truth and self.method.claims_posterior and self.method.extra_draws > 0


@dataclass
class Judge:
    """Turns cases into records. missing: why a metric cannot be computed on this machine; true_images: those that were
    measured, and other_images: real ones that were not, to which sets are compared; None where the dataset has none.
    """

    params: Params
    memo: Memo
    networks: Networks
    true_images: Images
    other_images: Images | None
    missing: Mapping[str, str]
    references: dict[Any, Tensor] = field(default_factory=dict)

    @classmethod
    def find(
        cls, params: Params, memo: Memo, device: torch.device, true_images: Images, other_images: Images | None
    ) -> "Judge":
        """A judge with all that this machine can compute; a missing weight file is said, never replaced."""
        networks = Networks(params.evaluate.weights_dir, params.data.image_size, str(device))
        missing = {}
        for metric in METRICS.values():
            try:
                if metric.loader is not None:
                    networks.load(metric.loader)
            except WeightsUnavailableError as error:
                missing[metric.name] = str(error)
                log.info("%s is unavailable: %s", metric.name, error)
            if metric.against_others and other_images is None:
                missing[metric.name] = "the dataset has no real images beside those that are measured"
        return cls(params, memo, networks, true_images, other_images, missing)

    def metrics(self, case: Case) -> list[Metric]:
        """Those that mean something for a case, whether they can be computed or not."""
        offered = self._offered(case)
        return [metric for metric in METRICS.values() if metric.needs <= offered]

    def record(self, case: Case, metric: Metric) -> Record:
        """The number of one metric, or why there is none."""
        if reason := self._obstacle(case, metric):
            return unavailable(case.cell, metric.name, reason)
        _, values = self.values(case, metric)
        if len(values) < (2 if metric.statistic or metric.judges_draws else 1):
            return unavailable(case.cell, metric.name, _DRAWS_DIVERGED if metric.judges_draws else _DIVERGED)
        return record(case.cell, metric.name, self._summary(case, metric, values), len(values))

    def scores(self, case: Case) -> Tensors:
        """What pairs are compared by: of each metric that is a mean over images the value of each image (n,) float64,
        NaN where it has none; of each other one its values over resampled images, (R,) float64.
        """
        found = {}
        for metric in self.metrics(case):
            if self._obstacle(case, metric):
                continue
            images, values = self.values(case, metric)
            if metric.statistic is None:
                found[metric.name] = torch.full((len(case.measured.keys),), torch.nan, dtype=torch.float64)
                found[metric.name][images] = self._capped(case, metric, values).double()
            elif len(values) >= 2:
                found[metric.name] = torch.tensor(self._summary(case, metric, values)["resampled"], dtype=torch.float64)
        return found

    def curves(self, case: Case) -> Iterator[dict[str, Any]]:
        """How far the uncertainty that a method states can be trusted, as curves."""
        head = {"degradation": case.cell.degradation, "method": case.cell.method}
        if case.measured.has_truth and "components" in case.restored.names:
            yield head | curves_of_components(self.values(case, METRICS["nppc_std_ratio"])[1])
        if case.has_draws and (n := self.params.evaluate.calibration_images):
            images, restorations = self._draws(case)
            if len(images) >= 2:
                code = code_digest("components.evaluation.calibration")
                facts = {"curves": case.restored.identity, "n": n, "code": code}
                yield head | self.memo.data(facts, lambda: curves_of_draws(restorations))

    def work(self, case: Case) -> None:
        """Compute the values of finished restorations that are not there and that no other process is busy with."""
        if case.restored.is_complete:
            for metric in self.metrics(case):
                if not self._obstacle(case, metric):
                    self._kept_values(case, metric, wait=False)

    def values(self, case: Case, metric: Metric) -> tuple[Tensor, Tensor]:
        """The images (m,) that did not diverge, and the metric's values (m, ...) for them."""
        kept = self._kept_values(case, metric, wait=True)
        assert kept is not None, "waited for"
        return kept["images"], kept["values"]

    # Which metrics a case has.

    def _offered(self, case: Case) -> set[Need]:
        has_truth, is_judged = case.measured.has_truth, self.params.evaluate.calibration_images > 0
        offers: dict[Need, bool] = {
            "truth": has_truth,
            "residual": has_truth,
            "samples": case.method.is_generative,
            "projected": has_truth and case.method.is_generative,
            "components": "components" in case.restored.names,
            "draws": case.has_draws and is_judged,
            "forecast": has_truth and is_judged and (case.has_draws or case.method.is_point_estimate),
        }
        return {need for need, there in offers.items() if there}

    def _obstacle(self, case: Case, metric: Metric) -> str | None:
        if "projected" in metric.needs and case.measured.is_noisy:
            return _NOISY
        return self.missing.get(metric.name)

    # Values of images.

    def _kept_values(self, case: Case, metric: Metric, *, wait: bool) -> Tensors | None:
        def compute() -> Tensors:
            return self._of_draws(case, metric) if metric.judges_draws else self._of_images(case, metric)

        return self.memo.tensors(self._values_facts(case, metric), compute, wait=wait)

    def _values_facts(self, case: Case, metric: Metric) -> Facts:
        return {
            "values": metric.source or metric.name,
            "restorations": case.restored.identity,
            "code": code_digest(metric.values.__module__),
            "weights": _file_digest(self.networks.weights / metric.weights) if metric.weights else None,
            "n": self.params.evaluate.calibration_images if metric.judges_draws else None,
        }

    def _of_images(self, case: Case, metric: Metric) -> Tensors:
        names = {"images"}.union(*(READS.get(need, frozenset()) for need in metric.needs))
        images: list[int] = []
        values: list[Tensor] = []
        for chosen, tensors in case.restored.parts(names):
            if chosen:
                images += chosen
                values.append(metric.values(self._restorations(case, chosen, tensors)).cpu())
        if not images:
            return {"images": torch.zeros(0, dtype=torch.long), "values": torch.zeros(0)}
        order = torch.tensor(images).argsort()
        return {"images": torch.tensor(images)[order], "values": torch.cat(values)[order].contiguous()}

    def _of_draws(self, case: Case, metric: Metric) -> Tensors:
        images, restorations = self._draws(case)
        if len(images) < 2:
            return {"images": images[:0], "values": torch.zeros(0)}
        return {"images": images, "values": metric.values(restorations).cpu().contiguous()}

    def _draws(self, case: Case) -> tuple[Tensor, Restorations]:
        """The draws of the first images of which none diverged; of a point estimate, its one image."""
        n = min(self.params.evaluate.calibration_images, len(case.measured.keys))
        if case.has_draws:
            draws, gone = (case.restored.gather_draws(name, n) for name in ("images", "diverged"))
        else:
            draws, gone = (case.restored.gather(name, n)[:, None] for name in ("images", "diverged"))
        sound = (~gone.any(dim=1)).nonzero().flatten()
        return sound, self._restorations(case, sound.tolist(), {"images": draws[sound, 0], "draws": draws[sound]})

    def _restorations(self, case: Case, images: list[int], tensors: Tensors) -> Restorations:
        measured, degradation = case.measured, case.measured.degradation
        return Restorations(
            truth=measured.images.read(images) if measured.has_truth else None,
            n_measured=measured.n_measured[images],
            networks=self.networks,
            # The same draws for all methods, so that they can be compared.
            random=lambda: generator(self.params.seed, "evaluate/calibration", degradation),
            **tensors,
        )

    # From values to a number.

    def _summary(self, case: Case, metric: Metric, values: Tensor) -> Summary:
        functions = (metric.values, metric.statistic, metric.reference, metric.ceiling)
        modules = {function.__module__ for function in functions if function is not None}
        facts = {
            "metric": metric.name,
            "values": identity(self._values_facts(case, metric)),
            "code": code_digest("invfusion.metrics.base", "invfusion.metrics.tools.bootstrap", *modules),
            "resamples": self.params.evaluate.bootstrap_resamples,
            "reference": self._compared_to(metric).sha256 if metric.reference else None,
        }
        return self.memo.data(facts, lambda: self._summarised(case, metric, values))

    def _summarised(self, case: Case, metric: Metric, values: Tensor) -> Summary:
        count = self.params.evaluate.bootstrap_resamples
        # All methods on one set are resampled alike, so that their intervals can be compared.
        draws = generator(self.params.seed, "evaluate/bootstrap", case.measured.degradation)
        if metric.statistic is None:
            exact, values = int(values.isinf().sum()), self._capped(case, metric, values)
            low, high = mean_interval(values, count, draws)
            return {"value": float(values.mean()), "low": low, "high": high, "n_exact": exact}
        values, reference = values.to(self.networks.device), self._reference(metric)
        # The reference is a sample too.
        of_reference = generator(self.params.seed, "evaluate/bootstrap/reference", case.measured.degradation)
        return _of_set(metric, values, reference, min(count, MAX_SET_RESAMPLES), draws, of_reference)

    def _capped(self, case: Case, metric: Metric, values: Tensor) -> Tensor:
        return metric.capped(values, tuple(case.measured.facts["image_shape"]))

    def _reference(self, metric: Metric) -> Tensor | None:
        if metric.reference is None:
            return None
        key = metric.reference, metric.against_others
        if key not in self.references:
            self.references[key] = self._features(metric, self._compared_to(metric))
        return self.references[key]

    def _features(self, metric: Metric, images: Images) -> Tensor:
        assert metric.reference is not None, "a metric of sets"
        parts = [metric.reference(part, self.networks) for part in images.parts()]
        return torch.cat(parts).to(self.networks.device)

    def _compared_to(self, metric: Metric) -> Images:
        if metric.against_others:
            assert self.other_images is not None, "else the metric is missing"
            return self.other_images
        return self.true_images

    def of_real_images(self) -> list[dict[str, Any]]:
        """How the measured images themselves score where sets are compared to others: what restorations can reach."""
        metrics = [m for m in METRICS.values() if m.against_others and m.name not in self.missing]
        return [{"metric": metric.name, "n": len(self.true_images), **self._of_real(metric)} for metric in metrics]

    def _of_real(self, metric: Metric) -> Summary:
        code = code_digest("invfusion.metrics.base", "invfusion.metrics.tools.bootstrap", metric.values.__module__)
        count = min(self.params.evaluate.bootstrap_resamples, MAX_SET_RESAMPLES)
        facts = {
            "real": metric.name, "code": code, "resamples": count, "images": self.true_images.sha256,
            "reference": self._compared_to(metric).sha256,
        }  # fmt: skip

        def compute() -> Summary:
            draws = [generator(self.params.seed, f"evaluate/bootstrap/real/{side}") for side in range(2)]
            return _of_set(metric, self._features(metric, self.true_images), self._reference(metric), count, *draws)

        return {name: value for name, value in self.memo.data(facts, compute).items() if name != "resampled"}


def _of_set(
    metric: Metric, values: Tensor, reference: Tensor | None, count: int, draws: torch.Generator,
    of_reference: torch.Generator,
) -> Summary:  # fmt: skip
    """A number that is no mean over images, with its values over resampled images and resampled reference, and their
    interval."""
    weights = resampled(len(values), count, draws).to(values.device)
    others = None if reference is None else resampled(len(reference), count, of_reference).to(values.device)
    value = metric.number(values, reference)
    spread = laid_around(value, metric.weighted(values, reference)(weights, others).cpu(), metric.nonnegative)
    low, high = interval_of(spread)
    return {"value": value, "low": low, "high": high, "n_exact": 0, "resampled": spread.tolist()}


_file_digest = cache(sha256_of)
