"""Judge every trained model on frozen measurement sets; a killed evaluation continues where it stopped.

`python -m components.evaluation.evaluate` runs it without orchestration; `runtime.processes` of them share the batches.

Reads  artifacts/staged, artifacts/models/<model>  and writes five things (paths relative to the project's root):

1. artifacts/evaluation/measurements/<degradation>.safetensors + .json: the frozen set that every method sees.
   json: {degradation, family, seed, split, noise, image_shape, images_sha256, keys,
   groups: [{kind, attributes, indices}], sha256}.
   Samples whose operators cannot share a batch (another stride, say) lie in different groups; group g has the tensors
   `g/y`, `g/sigma_y` and `g/operator/<tensor>`.

2. reports/evaluation.json: a flat list, by degradation, then method, then metric, of records
       {"method", "degradation", "metric", "value", "low", "high", "n", "nfe", "measurements_sha256"}
   value: float rounded to 6 significant digits, or null where it could not be computed; such a record has one more key
   "unavailable" (a sentence with the path where the missing file is looked for). low, high: 95% bootstrap interval over
   images, or null. n: images. nfe: network calls per image (0 for H_pinv y). "n_diverged", where it is not 0: images
   whose trajectory diverged; they are not among the n. A psnr record may have one more key, "n_exact": how many images
   were restored without any error at 8 bits; each counts with the largest finite PSNR of its size, that of one entry
   off by one grey level.
   degradation: kinds of params.evaluate.families in their order, then "unconditional" (Table 4).
   method: the names of params.evaluate.methods, as in the paper's tables where it has them: DDRM, Palette, InvFusion,
       Palette MMSE, InvFusion MMSE (one step, Eq. 8), Unconditional, ...; H_pinv y is the measurement shown as an
       image, MMSE the model distilled by Eq. 7, NPPC the one with principal components.
   metric: psnr, consistency_mse (mean over measurement entries), consistency_sse (the paper's sum over them);
       for samples also fd_pixel8x8, cfd_pixel8x8 (after projection), kd_pixel8x8 (Frechet and kernel distance over
       pixels averaged to 8x8), fid, cfid, kid, lpips;
       for nppc also nppc_captured_energy (fraction of the error's energy within the predicted directions) and
       nppc_std_ratio (predicted over actual standard deviation along them; 1 is calibrated);
       from evaluate.calibration_draws samples of each of the first evaluate.calibration_images images also tarp_gap
       (distance of TARP's curve from the diagonal), coverage_90 (share of pixels within their central 90% interval) and
       std_ratio (predicted over actual deviation; 1 is calibrated);
       on "unconditional" only fd_pixel8x8, kd_pixel8x8, fid, kid.

   artifacts/evaluation/calibration.json: for each method with draws {degradation, method, tarp, coverage, predicted,
   actual}: TARP's curve and the coverage of central intervals at 41 levels from 0 to 1, and the predicted and actual
   deviations of pixels grouped by the former; for NPPC these two for each of its directions.

3. reports/metrics.json: the available values nested {degradation: {method: {metric: value}}}, for `dvc metrics show`.

4. reports/costs.json: a list of {"method", "degradation", "n", "n_diverged", "nfe", "seconds_per_image",
   "peak_memory_mib", "device"}; memory as `components.evaluation.costs` says. These differ from run to run, the
   records do not.

5. artifacts/evaluation/restorations/<degradation>/<method>.safetensors: the first params.report.gallery_images images.
   `images` uint8 (g, C, H, W) for every method, for "truth" and for "measured" (H_pinv y); those of "Palette MMSE" are
   in palette_mmse. `diverged` bool (g,) for every method.
   With extra draws also: `draws` uint8 (g, d, C, H, W), further posterior samples, and `std` float32 (g, C, H, W), the
   per-pixel standard deviation over `images` and `draws`, in [-1, 1] units.
   NPPC also: `mean` float32 (g, C, H, W), `components` float32 (g, K, C, H, W), unit directions sorted by std, and
   `stds` float32 (g, K). A step along direction k: mean +- stds[k] * components[k].
   index.json: {degradation: {"keys": [...], "methods": [...]}}; "unconditional" has no "truth" and no keys of images.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from components import tracking
from components.device import pick_device
from components.evaluation.calibration import judge_components, judge_draws
from components.evaluation.measurement_sets import MeasurementSet, frozen, measure, nothing_measured
from components.evaluation.methods import Column, Method, columns, trained_models
from components.evaluation.records import (
    SET_METRICS,
    Cell,
    Recorder,
    file_name,
    unavailable,
    write_costs,
    write_records,
)
from components.evaluation.restoring import STATE, Restored, Restorer, Tools
from components.evaluation.sharing import helpers, is_helper
from components.params import Params, load_params
from components.progress import Progress
from components.records import Record
from invfusion.codec import decode
from invfusion.data import StagedDataset
from invfusion.degradations import FAMILIES
from invfusion.errors import CheckpointError, ConfigError, DataError, InvFusionError
from invfusion.rng import generator

log = logging.getLogger(__name__)

STAGED = Path("artifacts/staged")
MODELS = Path("artifacts/models")
OUTPUT = Path("artifacts/evaluation")
RECORDS = Path("reports/evaluation.json")
METRICS = Path("reports/metrics.json")
COSTS = Path("reports/costs.json")
NAME = "evaluate"


def evaluate(params: Params) -> Path:
    """Run every method on every degradation and write what the head of this file lists; returns the records' path.

    Raises:
        CheckpointError: a model that params name has not been trained.
        DataError: the staged split holds too few images.
        ConfigError: two families of params.evaluate.families have one kind.
        OperatorError: a sampler asks of a family what its operators do not offer.
    """
    plan = columns(params, trained_models(params))
    models = {method.model: MODELS / method.model for column in plan for method in column.methods if method.model}
    evaluation = prepare(params, plan, models, OUTPUT)
    if is_helper():
        evaluation.help()
        return RECORDS
    with tracking.start_run(params, "evaluate", NAME) as run, helpers(params, "components.evaluation.evaluate"):
        results = evaluation.run()
        write_records(results.records, RECORDS, METRICS)
        write_costs(results.costs, COSTS)
        run.log_metrics({"/".join(r.key): r.value for r in results.records if r.value is not None})
        run.log_artifact(RECORDS)
    forget_unused(NAME, evaluation.restorer.used)
    log.info("%d records in %s", len(results.records), RECORDS)
    return RECORDS


def prepare(params: Params, plan: Sequence[Column], models: Mapping[str, Path], output: Path) -> "Evaluation":
    """An evaluation that is known to work: everything it needs was looked at, and nothing was computed."""
    dataset = StagedDataset(STAGED, params.evaluate.split)
    check_inputs(params, plan, models, dataset)
    return Evaluation(make_restorer(params, models), dataset, tuple(plan), output)


def check_inputs(params: Params, plan: Sequence[Column], models: Mapping[str, Path], dataset: StagedDataset) -> None:
    """Refuse what cannot work before any work is done."""
    kinds = [family.kind for family in params.evaluate.families]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ConfigError(f"evaluate.families lists {', '.join(twice)} more than once; each kind is one column")
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
    draws = generator(params.seed, "evaluate/check", column.kind)
    x = torch.zeros(1, *image_shape)
    measurement = params.evaluate.noise.measure(x, column.family.sample(1, image_shape, draws), draws)
    any_model: Any = SimpleNamespace(components=True)
    for method in column.methods:
        if method.sampler is not None:
            method.sampler.check_capabilities(any_model, measurement)


def make_restorer(params: Params, models: Mapping[str, Path]) -> Restorer:
    """Choose the device and find the tools of the metrics."""
    device = pick_device(params.runtime.device)
    tools = Tools.find(params.evaluate.weights_dir, params.data.image_size, device)
    for metric, reason in tools.missing.items():
        log.info("%s is unavailable: %s", metric, reason)
    return Restorer(params, device, tools, models)


def forget_unused(name: str, used: set[Path]) -> None:
    """Remember which batches the evaluation of this name uses, and remove those that none does any more."""
    uses = STATE / "uses"
    uses.mkdir(parents=True, exist_ok=True)
    (uses / f"{name}.json").write_text(json.dumps(sorted(folder.name for folder in used)))
    needed = {cell for path in uses.glob("*.json") for cell in json.loads(path.read_text())}
    for folder in STATE.iterdir():
        if folder.is_dir() and folder != uses and folder.name not in needed:
            shutil.rmtree(folder)


# The evaluation, degradation by degradation.


@dataclass
class Results:
    """What an evaluation found: records, costs and calibration curves of its cells, the hashes of its measurements."""

    records: list[Record] = field(default_factory=list)
    costs: list[dict[str, Any]] = field(default_factory=list)
    measurements: dict[str, str] = field(default_factory=dict)
    calibration: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Evaluation:
    """All cells of one evaluation. Only one measurement set is in memory at a time.

    plan: the columns; output: a folder for restorations, and for the measurement sets unless `kept_sets` has them.
    """

    restorer: Restorer
    dataset: StagedDataset
    plan: tuple[Column, ...]
    output: Path
    kept_sets: Path | None = None
    name: str = NAME

    def run(self) -> Results:
        """The records of every degradation in turn."""
        params, results, index = self.restorer.params, Results(), dict[str, Any]()
        recorder = Recorder(self.references(), params.evaluate.bootstrap_resamples, params.seed)
        progress = Progress(self.name, sum(len(column.methods) for column in self.plan), "cells")
        progress.begin(0)
        shutil.rmtree(self.output / "restorations", ignore_errors=True)
        for column in self.plan:
            measured = self.measured(column)
            if self.kept_sets is None:
                measured.save(self.output / "measurements")
            show_measured(self.output, measured, params.report.gallery_images)
            results.measurements[measured.degradation] = measured.sha256
            index[measured.degradation] = {"keys": list(measured.keys[: params.report.gallery_images]), "methods": []}
            for method in column.methods:
                self.cell(recorder, measured, method, results)
                index[measured.degradation]["methods"].append(method.name)
                progress.advance(len(results.costs))
        (self.output / "restorations" / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        (self.output / "calibration.json").write_text(json.dumps(results.calibration) + "\n")
        return results

    def help(self) -> None:
        """Compute batches for the process that gathers the results: from the end, as that begins at the start."""
        for column in reversed(self.plan):
            measured = self.measured(column)
            for method in reversed(column.methods):
                self.restorer.work(method, measured)

    def measured(self, column: Column) -> MeasurementSet:
        """The measurements of one column."""
        params, positions = self.restorer.params, self._positions()
        chosen, seed = params.evaluate, params.seed
        if column.family is None:
            shape, n_classes = self.dataset.image_shape, params.model.n_classes
            return nothing_measured(chosen.n_unconditional, shape, FAMILIES["null"](), seed, n_classes)
        keys = [self.dataset.keys[i] for i in positions]
        images, labels = self.dataset.read(positions), self.dataset.labels[positions]
        settings: dict[str, Any] = {"seed": seed, "noise": chosen.noise, "split": chosen.split}
        if self.kept_sets is None:
            return measure(column.family, keys, images, labels, **settings)
        return frozen(self.kept_sets, column.family, keys, images, labels, **settings)

    def _positions(self) -> list[int]:
        return choose_images(self.dataset.keys, self.restorer.params.evaluate.n_images)

    def references(self) -> dict[str, Tensor]:
        """The features of the true images, to which sets are compared."""
        images = self.dataset.read(self._positions())
        return {name: in_parts(extract, images) for name, extract in self.restorer.tools.features.items()}

    def cell(self, recorder: Recorder, measured: MeasurementSet, method: Method, results: Results) -> None:
        """Restore one set by one method, write the restorations to show, and add the records and costs."""
        restored = self.restorer.restore(method, measured)
        shape = tuple(self.dataset.image_shape)
        cell = Cell(
            method.name,
            measured.degradation,
            restored.values,
            restored.nfe,
            measured.sha256,
            shape,
            restored.n_diverged,
        )
        show(self.output, measured, method, restored, self.restorer.params.report.gallery_images)
        results.records += recorder.records(cell)
        results.records += self.calibrated(recorder, cell, measured, method, restored, results)
        results.records += [unavailable(cell, *gap) for gap in self.gaps(measured, method)]
        results.costs.append(cost_of(cell, restored, self.restorer.device))
        log.info(
            "%s / %s: %d images, %d calls and %.2f s each%s", cell.degradation, cell.method, cell.n, cell.nfe,
            restored.seconds_per_image, f", {cell.n_diverged} more diverged" if cell.n_diverged else "",
        )  # fmt: skip

    def calibrated(
        self,
        recorder: Recorder,
        cell: Cell,
        measured: MeasurementSet,
        method: Method,
        restored: Restored,
        results: Results,
    ) -> list[Record]:
        """How far the uncertainty that a method states can be trusted; adds the curves to the results."""
        head = {"degradation": cell.degradation, "method": cell.method}
        if "nppc_predicted" in cell.values:
            results.calibration.append(head | judge_components(cell.values))
        n = self.restorer.params.evaluate.calibration_images
        if measured.truth is None or n == 0 or not (method.claims_posterior and method.extra_draws):
            return []
        sound = ~by_image(restored.shown["diverged"], method)[:n].any(dim=1)
        if int(sound.sum()) < 2:
            return [unavailable(cell, "tarp_gap", "fewer than two images of which no draw diverged")]
        draws, truth = by_image(restored.shown["images"], method)[:n][sound], measured.truth[:n][sound]
        values, curves = judge_draws(draws, truth, self.restorer.params.seed, cell.degradation)
        results.calibration.append(head | curves)
        return recorder.calibration(replace(cell, values=values))

    def gaps(self, measured: MeasurementSet, method: Method) -> list[tuple[str, str]]:
        """The metrics that belong to a cell but cannot be computed, each with the reason."""
        if not method.is_generative:
            return []
        paired = {"lpips", *(projected for _, projected, _ in SET_METRICS.values())}
        gaps = {m: r for m, r in self.restorer.tools.missing.items() if measured.truth is not None or m not in paired}
        if measured.truth is not None and not self.restorer.params.evaluate.noise.is_absent:
            reason = "not defined for noisy measurements, to which no image is projected"
            gaps |= {projected: reason for _, projected, _ in SET_METRICS.values()}
        return sorted(gaps.items())


def cost_of(cell: Cell, restored: Restored, device: torch.device) -> dict[str, Any]:
    """One line of costs.json."""
    memory = restored.peak_memory_mib
    return {
        "method": cell.method,
        "degradation": cell.degradation,
        "n": cell.n,
        "n_diverged": cell.n_diverged,
        "nfe": cell.nfe,
        "seconds_per_image": float(f"{restored.seconds_per_image:.3g}"),
        "peak_memory_mib": None if memory is None else round(memory),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def choose_images(keys: Sequence[str], n: int) -> list[int]:
    """The positions of the n images whose keys have the smallest hashes: a fixed choice that ignores any order."""
    if n > len(keys):
        log.warning("the split has only %d of the %d images that evaluate.n_images asks for", len(keys), n)
    return sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())[:n]


def in_parts(extract: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    """Features of many images."""
    return torch.cat([extract(part) for part in torch.split(images, size)])


def by_image(values: Tensor, method: Method) -> Tensor:
    """Values with all draws of an image in a row, (n * S, ...), as (n, S, ...)."""
    return values.reshape(-1, 1 + method.extra_draws, *values.shape[1:])


def show_measured(output: Path, measured: MeasurementSet, n_shown: int) -> None:
    """Write the true images that the galleries show, and their measurements as images."""
    folder = output / "restorations" / measured.degradation
    folder.mkdir(parents=True, exist_ok=True)
    if measured.truth is not None:
        save_file({"images": measured.truth[:n_shown].contiguous()}, folder / "truth.safetensors")
        save_file({"images": measured.as_images(n_shown)}, folder / "measured.safetensors")


def show(output: Path, measured: MeasurementSet, method: Method, restored: Restored, n_shown: int) -> None:
    """Write the restorations of one method that the galleries show."""
    folder = output / "restorations" / measured.degradation
    shown = dict(restored.shown)
    images = by_image(shown.pop("images"), method)[:n_shown]
    shown |= {"images": images[:, 0], "diverged": by_image(shown["diverged"], method)[:n_shown, 0]}
    if method.extra_draws:
        shown |= {"draws": images[:, 1:], "std": decode(images).std(dim=1)}
    save_file({name: t.contiguous() for name, t in shown.items()}, folder / f"{file_name(method.name)}.safetensors")


def main() -> None:
    """The evaluation of a params file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--params", default="params.yaml")
    logging.basicConfig(level=logging.ERROR if is_helper() else logging.INFO, format="%(message)s")
    try:
        evaluate(load_params(parser.parse_args().params))
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
