"""Judge every trained model on frozen measurement sets; a killed evaluation continues where it stopped.

`python -m components.evaluation.evaluate` runs it without orchestration; `runtime.processes` of them share the work.
First restorations are made and kept under state/evaluate (`restoring`), then metrics are computed of them (`judging`).

Reads  artifacts/staged, artifacts/models/<model>  and writes (paths relative to the project's root):

reports/evaluation.json: records as `components.records.Record` says, by degradation, then method, then metric.
   degradation: kinds of params.evaluate.families in their order, then "unconditional" (images from nothing, Table 4).
   method: the names of params.evaluate.methods. H_pinv y is the measurement shown as an image.
   metric: those of `invfusion.metrics.METRICS` that mean something for the method. Metrics of draws are computed on
   evaluate.calibration_draws draws of each of the first evaluate.calibration_images images.
reports/metrics.json: the available values nested {degradation: {method: {metric: value}}}, for `dvc metrics show`.
reports/costs.json: {method, degradation, n, n_diverged, nfe, seconds_per_image, peak_memory_mib, device} of each cell;
   these differ from run to run, the records do not.
artifacts/evaluation/
   scores/<degradation>/<method>.safetensors: {metric: (n,) float64} for each metric that is a mean over images, in the
      order of the frozen set's images; NaN where an image diverged, or where it is not among the metric's images. For
      each other metric its values over resampled images, (R,) float64, where none diverged the same ones for all
      methods. Of equal images and noise, so that two methods can be compared in pairs.
   measurements/<degradation>.json and .npy: the frozen set that every method sees (see `measurement_sets`). Samples
      whose operators cannot share a batch (another stride, say) lie in different groups.
   restorations/<degradation>/<method>.safetensors: the first params.report.gallery_images images, also of "truth" and
      "measured" (H_pinv y). `images` uint8 (g, C, H, W), `diverged` bool (g,); with further draws `draws` uint8
      (g, d, C, H, W) and `std` float32 (g, C, H, W) over `images` and `draws`, in [-1, 1] units; with principal
      components `mean` float32 (g, C, H, W), `components` (g, K, C, H, W), unit directions sorted by std, and `stds`
      (g, K): a step along direction k is mean +- stds[k] * components[k]. "Palette MMSE" is palette_mmse.
   restorations/index.json: {degradation: {"keys": [...], "methods": [...]}}.
   real.json: {metric, n, value, low, high} of the true images themselves, for each metric that compares sets of images
      to real ones that were not measured: what a perfect restoration would score.
   calibration.json: {degradation, method, tarp, coverage, predicted, actual} of each method with draws: TARP's curve
      and the coverage of central intervals at 41 levels from 0 to 1, and the deviations that half of the draws predict
      and that there are, of pixels grouped by the other half; {degradation, method, predicted, actual} of one with
      principal components, for each direction.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from components import cli, tracking
from components.code import code_digest
from components.data.prior import staged_prior
from components.device import pick_device
from components.evaluation.galleries import show, show_measured
from components.evaluation.images import Images
from components.evaluation.judging import Case, Judge
from components.evaluation.measurement_sets import MeasurementSet, Request, frozen, nothing_measured
from components.evaluation.methods import Column, columns
from components.evaluation.records import write_costs, write_records
from components.evaluation.restoring import Restorer
from components.evaluation.sharing import helpers, is_helper
from components.params import Params
from components.paths import COSTS, DETAILS, EVALUATION, MODELS, STAGED, file_name
from components.progress import Progress
from components.records import Record
from invfusion.data import StagedDataset
from invfusion.degradations import FAMILIES
from invfusion.errors import CheckpointError, DataError
from invfusion.measuring import Streams, measure_batch

log = logging.getLogger(__name__)

METRICS = Path("reports/metrics.json")
NAME = "evaluate"
# Real images to which sets are compared: the more, the less their own number shows.
MAX_OTHER_IMAGES = 10_000


def evaluate(params: Params) -> Path:
    """Run every method on every degradation and write what the head of this file lists; returns the records' path.

    Raises:
        CheckpointError: a model that params name has not been trained.
        DataError: the staged split holds too few images.
        OperatorError: a sampler asks of a family what its operators do not offer.
    """
    plan = columns(params, params.models)
    models = {method.model: MODELS / method.model for column in plan for method in column.methods if method.model}
    evaluation = prepare(params, plan, models, DETAILS)
    if is_helper():
        evaluation.help()
        return EVALUATION
    with tracking.start_run(params, "evaluate", NAME) as run, helpers(params, "components.evaluation.evaluate"):
        results = evaluation.run()
        write_records(results.records, EVALUATION, METRICS)
        write_costs(results.costs, COSTS)
        run.log_metrics({"/".join(r.key): r.value for r in results.records if r.value is not None})
        run.log_artifact(EVALUATION)
    evaluation.restorer.memo.forget_unused(NAME)
    log.info("%d records in %s", len(results.records), EVALUATION)
    return EVALUATION


def prepare(params: Params, plan: Sequence[Column], models: Mapping[str, Path], output: Path) -> "Evaluation":
    """An evaluation that is known to work: everything it needs was looked at, and nothing was computed."""
    dataset = StagedDataset(STAGED, params.evaluate.split)
    check_inputs(params, plan, models, dataset)
    restorer = Restorer(params, pick_device(params.runtime.device), models)
    images = Images.of_split(dataset, choose_images(dataset.keys, params.evaluate.n_images))
    judge = Judge.find(params, restorer.memo, restorer.device, images, _other_images(params.evaluate.split))
    return Evaluation(restorer, judge, images, tuple(plan), output)


def _other_images(split: str) -> Images | None:
    """Real images that are not measured, of the training split where that is another; None without any."""
    try:
        dataset = StagedDataset(STAGED, "val" if split == "train" else "train")
    except DataError:
        return None
    n = min(len(dataset), MAX_OTHER_IMAGES)
    return Images.of_split(dataset, choose_images(dataset.keys, n)) if n > 1 else None


def check_inputs(params: Params, plan: Sequence[Column], models: Mapping[str, Path], dataset: StagedDataset) -> None:
    """Refuse what cannot work before any work is done."""
    if len(dataset) < 2:
        raise DataError(f"the split '{params.evaluate.split}' has {len(dataset)} images; evaluation needs at least 2")
    for folder in models.values():
        if not (folder / "model.safetensors").is_file():
            raise CheckpointError(f"{folder} holds no trained model: run the stage that makes it first")
    for column in plan:
        _check_samplers(params, column, dataset.image_shape)


def _check_samplers(params: Params, column: Column, image_shape: Sequence[int]) -> None:
    """Let each sampler look at one measurement; what it asks of its model shows when that is loaded."""
    if column.family is None:
        return
    streams = Streams("evaluate/check", "evaluate/check/noise")
    x = torch.zeros(1, *image_shape)
    measurement = measure_batch(x, column.family, params.evaluate.noise, column.kind, params.seed, streams)
    any_model: Any = SimpleNamespace(components=True)
    for method in column.methods:
        if method.sampler is not None:
            reads = staged_prior(STAGED) if method.needs_prior else any_model
            method.sampler.check_capabilities(reads, measurement)


# The evaluation, degradation by degradation.


@dataclass
class Results:
    """What an evaluation found: records, costs and calibration curves of its cells, the hashes of its measurements, and
    how real images score (`Judge.of_real_images`)."""

    records: list[Record] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    measurements: dict[str, str] = field(default_factory=dict)
    calibration: list[dict[str, Any]] = field(default_factory=list)
    real: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Evaluation:
    """All cells of one evaluation. What is in memory does not grow with the number of images.

    plan: the columns; output: a folder for scores and restorations, and for the measurement sets unless `kept_sets` has
    them.
    """

    restorer: Restorer
    judge: Judge
    images: Images
    plan: tuple[Column, ...]
    output: Path
    kept_sets: Path | None = None
    name: str = NAME

    def run(self) -> Results:
        """The records of every degradation in turn."""
        results, index, n_shown = Results(), dict[str, Any](), self.restorer.params.report.gallery_images
        progress = Progress(self.name, sum(len(column.methods) for column in self.plan), "cells")
        progress.begin(0)
        for folder in ("restorations", "scores"):
            shutil.rmtree(self.output / folder, ignore_errors=True)
        for column in self.plan:
            measured = self.measured(column)
            show_measured(self.output / "restorations", measured, n_shown)
            results.measurements[measured.degradation] = measured.sha256
            index[measured.degradation] = {"keys": list(measured.keys[:n_shown]), "methods": []}
            for method in column.methods:
                self._cell(Case(method, measured, self.restorer.restore(method, measured)), results)
                index[measured.degradation]["methods"].append(method.name)
                progress.advance(len(results.costs))
        (self.output / "restorations" / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        (self.output / "calibration.json").write_text(json.dumps(results.calibration) + "\n")
        results.real = self.judge.of_real_images()
        (self.output / "real.json").write_text(json.dumps(results.real, indent=1) + "\n")
        return results

    def help(self) -> None:
        """Compute for the process that gathers the results: from the end, as that begins at the start."""
        for column in reversed(self.plan):
            measured = self.measured(column)
            for method in reversed(column.methods):
                self.restorer.work(method, measured)
        for column in reversed(self.plan):
            measured = self.measured(column)
            for method in reversed(column.methods):
                self.judge.work(Case(method, measured, self.restorer.restored(method, measured)))

    def measured(self, column: Column) -> MeasurementSet:
        """The measurements of one column."""
        params = self.restorer.params
        chosen, own = params.evaluate, self.output / "measurements"
        if column.family is None:
            null, n_classes = FAMILIES["null"](), params.model.n_classes
            return nothing_measured(own, chosen.n_unconditional, self.images.shape, null, params.seed, n_classes)
        request = Request(column.family, params.seed, chosen.noise, chosen.split)
        if self.kept_sets is not None:
            return frozen(self.kept_sets, request, self.images)
        code = code_digest(type(column.family).__module__, type(chosen.noise).__module__, "invfusion.measuring")
        return frozen(own, replace(request, code=code), self.images, name=column.kind)

    def _cell(self, case: Case, results: Results) -> None:
        """Judge one set of restorations; write its scores and what is shown of it, and add the rest to the results."""
        cell = case.cell
        show(self.output / "restorations", case, self.restorer.params.report.gallery_images)
        results.records += [self.judge.record(case, metric) for metric in self.judge.metrics(case)]
        results.calibration += self.judge.curves(case)
        results.costs.append(cost_of(case, self.restorer.device))
        scores = self.output / "scores" / cell.degradation / f"{file_name(cell.method)}.safetensors"
        scores.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.judge.scores(case), scores)
        log.info(
            "%s / %s: %d images, %d calls and %.2f s each%s", cell.degradation, cell.method, cell.n, cell.nfe,
            case.restored.costs.seconds_per_image, f", {cell.n_diverged} more diverged" if cell.n_diverged else "",
        )  # fmt: skip


def cost_of(case: Case, device: torch.device) -> dict[str, Any]:
    """One line of costs.json."""
    costs = case.restored.costs
    return {
        "method": case.cell.method,
        "degradation": case.cell.degradation,
        "n": case.cell.n,
        "n_diverged": case.cell.n_diverged,
        "nfe": costs.nfe,
        "seconds_per_image": float(f"{costs.seconds_per_image:.3g}"),
        "peak_memory_mib": None if costs.peak_memory_mib is None else round(costs.peak_memory_mib),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def choose_images(keys: Sequence[str], n: int) -> list[int]:
    """The positions of the n images whose keys have the smallest hashes: a fixed choice that ignores any order."""
    if n > len(keys):
        log.warning("the split has only %d of the %d images that evaluate.n_images asks for", len(keys), n)
    return sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())[:n]


def main() -> None:
    """The evaluation of a params file."""
    with cli.started(cli.parser(main.__doc__), quiet=is_helper()) as options:
        evaluate(options.params)


if __name__ == "__main__":
    main()
