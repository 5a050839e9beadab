"""Judge every trained model on frozen measurement sets; a killed evaluation continues where it stopped.

Reads  artifacts/staged, artifacts/models/<variant>  and writes four things (paths relative to the project's root):

1. artifacts/evaluation/measurements/<degradation>.safetensors + .json: the frozen set that every method sees.
   json: {degradation, family, seed, split, sigma_y, image_shape, keys, groups: [{kind, attributes, indices}], sha256}.
   Samples whose operators cannot share a batch (another stride, say) lie in different groups; group g has the tensors
   `g/y`, `g/sigma_y` and `g/operator/<tensor>`.

2. reports/evaluation.json: a flat list, by degradation, then method, then metric, of records
       {"method", "degradation", "metric", "value", "low", "high", "n", "nfe", "measurements_sha256"}
   value: float rounded to 6 significant digits, or null where it could not be computed; such a record has one more key
   "unavailable" (a sentence with the path where the missing file is looked for). low, high: 95% bootstrap interval over
   images, or null. n: images. nfe: network calls per image (0 for H_pinv y). A psnr record may have one more key,
   "n_exact": how many images were restored without any error at 8 bits; each counts with the largest finite PSNR of
   its size, that of one entry off by one grey level.
   degradation: kinds of params.evaluate.families in their order, then "unconditional" (Table 4).
   method: H_pinv y (the measurement shown as an image), DDRM, Palette, InvFusion (samples), Palette MMSE,
       InvFusion MMSE (one step, Eq. 8), MMSE (distilled, Eq. 7), NPPC (only on the family that it was distilled for);
       on "unconditional": Unconditional, Palette, InvFusion.
   metric: psnr, consistency_mse (mean over measurement entries), consistency_sse (the paper's sum over them);
       for samples also fd_pixel8x8, cfd_pixel8x8 (after projection), kd_pixel8x8 (Frechet and kernel distance over
       pixels averaged to 8x8), fid, cfid, kid, lpips;
       for nppc also nppc_captured_energy (fraction of the error's energy within the predicted directions) and
       nppc_std_ratio (predicted over actual standard deviation along them; 1 is calibrated);
       on "unconditional" only fd_pixel8x8, kd_pixel8x8, fid, kid.

3. reports/metrics.json: the available values nested {degradation: {method: {metric: value}}}, for `dvc metrics show`.

4. artifacts/evaluation/restorations/<degradation>/<method>.safetensors: the first params.report.gallery_images images.
   `images` uint8 (g, C, H, W) for every method, and for "truth" too; the file of "Palette MMSE" is palette_mmse;
   Palette, InvFusion also: `draws` uint8 (g, 3, C, H, W), further posterior samples, and `std` float32 (g, C, H, W),
   the per-pixel standard deviation over `images` and `draws`, in [-1, 1] units;
   NPPC also: `mean` float32 (g, C, H, W), `components` float32 (g, K, C, H, W), unit directions sorted by std, and
   `stds` float32 (g, K). A step along direction k: mean +- stds[k] * components[k].
   index.json: {degradation: {"keys": [...], "methods": [...]}}; "unconditional" has no "truth" and no keys of images.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from components import tracking
from components.evaluation_records import SET_METRICS, Cell, Record, Recorder, file_name, unavailable, write_records
from components.measurement_sets import MeasurementSet, measure, nothing_measured
from components.restoring import MODELS, STATE, Method, Restored, Restorer, Tools
from invfusion.codec import decode
from invfusion.config import Params
from invfusion.data import StagedDataset
from invfusion.degradations import FAMILIES
from invfusion.errors import CheckpointError, ConfigError, DataError
from invfusion.samplers import DDRMConfig, MMSEConfig, NPPCConfig

log = logging.getLogger(__name__)

STAGED = Path("artifacts/staged")
OUTPUT = Path("artifacts/evaluation")
RECORDS = Path("reports/evaluation.json")
METRICS = Path("reports/metrics.json")

# Further posterior samples of each image that the galleries show.
GALLERY_DRAWS = 3


def evaluate(params: Params) -> Path:
    """Run every method on every degradation and write what the head of this file lists; returns the records' path.

    Raises:
        CheckpointError: a model that params name has not been trained.
        DataError: the staged split holds too few images.
        ConfigError: two families of params.evaluate.families have one kind.
    """
    dataset = StagedDataset(STAGED, params.evaluate.split)
    check_inputs(params, dataset)
    restorer = make_restorer(params)
    with tracking.start_run(params, "evaluate", "evaluate") as run:
        records = Evaluation(restorer, dataset).run()
        write_records(records, RECORDS, METRICS)
        run.log_metrics(
            {f"{r['method']}/{r['degradation']}/{r['metric']}": r["value"] for r in records if r["value"] is not None}
        )
        run.log_artifact(RECORDS)
    forget_other_state(restorer.used)
    log.info("%d records in %s", len(records), RECORDS)
    return RECORDS


def check_inputs(params: Params, dataset: StagedDataset) -> None:
    """Refuse what cannot work before any work is done."""
    kinds = [family.kind for family in params.evaluate.families]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ConfigError(f"evaluate.families lists {', '.join(twice)} more than once; each kind is one column")
    if len(dataset) < 2:
        raise DataError(f"the split '{params.evaluate.split}' has {len(dataset)} images; evaluation needs at least 2")
    for name in sorted({m.model for m in restoring_methods(params) + generating_methods(params) if m.model}):
        if not (MODELS / name / "model.safetensors").is_file():
            raise CheckpointError(f"{MODELS / name} holds no trained model: run the stage that makes it first")


def make_restorer(params: Params) -> Restorer:
    """Choose the device and find the tools of the metrics."""
    name = params.runtime.device
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    tools = Tools.find(params.evaluate.weights_dir, params.data.image_size, device)
    for metric, reason in tools.missing.items():
        log.info("%s is unavailable: %s", metric, reason)
    return Restorer(params, device, tools)


def forget_other_state(used: set[Path]) -> None:
    """Remove the kept batches of earlier models and settings."""
    for folder in STATE.iterdir():
        if folder not in used:
            shutil.rmtree(folder)


# Which methods.


def restoring_methods(params: Params) -> list[Method]:
    """The methods that restore, as far as params train their models."""
    heun, nppc_kind = params.evaluate.sampler, params.distill.nppc.degradation.kind
    known = [
        Method("H_pinv y"),
        Method("DDRM", "unconditional", DDRMConfig(), is_generative=True),
        Method("Palette", "palette", heun, is_generative=True, extra_draws=GALLERY_DRAWS),
        Method("InvFusion", "invfusion", heun, is_generative=True, extra_draws=GALLERY_DRAWS),
        Method("Palette MMSE", "palette", MMSEConfig()),
        Method("InvFusion MMSE", "invfusion", MMSEConfig()),
        Method("MMSE", "mmse", MMSEConfig()),
        Method("NPPC", "nppc", NPPCConfig(), only=nppc_kind),
    ]
    return trained(known, params)


def generating_methods(params: Params) -> list[Method]:
    """The methods that generate without a measurement (the paper's Table 4)."""
    if params.evaluate.n_unconditional < 2:
        return []
    heun = params.evaluate.sampler
    known = [
        Method("Unconditional", "unconditional", heun, is_generative=True, is_blind=True),
        Method("Palette", "palette", heun, is_generative=True),
        Method("InvFusion", "invfusion", heun, is_generative=True),
    ]
    return trained(known, params)


def trained(known: Iterable[Method], params: Params) -> list[Method]:
    """The methods whose models are among those that params train."""
    models = {None, *params.train.variants, *params.distill.targets}
    return [method for method in known if method.model in models]


# The evaluation, degradation by degradation.


@dataclass
class Evaluation:
    """All cells of one evaluation. Only one measurement set is in memory at a time."""

    restorer: Restorer
    dataset: StagedDataset

    def run(self) -> list[Record]:
        """The records of every degradation in turn."""
        params = self.restorer.params
        positions = choose_images(self.dataset.keys, params.evaluate.n_images)
        images = self.dataset.read(positions)
        references = {name: in_parts(extract, images) for name, extract in self.restorer.tools.features.items()}
        recorder = Recorder(references, params.evaluate.bootstrap_resamples, params.seed)
        records: list[Record] = []
        index: dict[str, Any] = {}
        for frozen, on in self.columns(positions, images):
            frozen.save(OUTPUT / "measurements")
            index[frozen.degradation] = {"keys": list(frozen.keys[: params.report.gallery_images]), "methods": []}
            for method in on:
                records += self.cell(recorder, frozen, method)
                index[frozen.degradation]["methods"].append(method.name)
        (OUTPUT / "restorations" / "index.json").write_text(json.dumps(index, indent=1) + "\n")
        return records

    def columns(self, positions: list[int], images: Tensor) -> Iterator[tuple[MeasurementSet, list[Method]]]:
        """Each measurement set with the methods that are to restore it; at last the set that measures nothing."""
        params = self.restorer.params
        keys, labels = [self.dataset.keys[i] for i in positions], self.dataset.labels[positions]
        chosen, seed = params.evaluate, params.seed
        for family in chosen.families:
            on = [m for m in restoring_methods(params) if m.only in (None, family.kind)]
            yield measure(family, keys, images, labels, seed=seed, sigma_y=chosen.sigma_y, split=chosen.split), on
        if generating := generating_methods(params):
            shape, n_classes = self.dataset.image_shape, params.model.n_classes
            yield nothing_measured(chosen.n_unconditional, shape, FAMILIES["null"](), seed, n_classes), generating

    def cell(self, recorder: Recorder, frozen: MeasurementSet, method: Method) -> list[Record]:
        """Restore one set by one method, write the restorations to show, and return the records."""
        start = time.perf_counter()
        restored = self.restorer.restore(method, frozen)
        shape = tuple(self.dataset.image_shape)
        cell = Cell(method.name, frozen.degradation, restored.values, restored.nfe, frozen.sha256, shape)
        show(frozen, method, restored, self.restorer.params.report.gallery_images)
        seconds = time.perf_counter() - start
        log.info("%s / %s: %d images, %d calls each, %.1f s", cell.degradation, cell.method, cell.n, cell.nfe, seconds)
        return recorder.records(cell) + [unavailable(cell, *gap) for gap in self.gaps(frozen, method)]

    def gaps(self, frozen: MeasurementSet, method: Method) -> list[tuple[str, str]]:
        """The metrics that belong to a cell but cannot be computed, each with the reason."""
        if not method.is_generative:
            return []
        paired = {"lpips", *(projected for _, projected, _ in SET_METRICS.values())}
        gaps = {m: r for m, r in self.restorer.tools.missing.items() if frozen.truth is not None or m not in paired}
        if frozen.truth is not None and self.restorer.params.evaluate.sigma_y > 0:
            reason = "not defined for noisy measurements, to which no image is projected"
            gaps |= {projected: reason for _, projected, _ in SET_METRICS.values()}
        return sorted(gaps.items())


def choose_images(keys: Sequence[str], n: int) -> list[int]:
    """The positions of the n images whose keys have the smallest hashes: a fixed choice that ignores any order."""
    if n > len(keys):
        log.warning("the split has only %d of the %d images that evaluate.n_images asks for", len(keys), n)
    return sorted(range(len(keys)), key=lambda i: hashlib.sha256(keys[i].encode()).digest())[:n]


def in_parts(extract: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    """Features of many images."""
    return torch.cat([extract(part) for part in torch.split(images, size)])


def show(frozen: MeasurementSet, method: Method, restored: Restored, n_shown: int) -> None:
    """Write the restorations of one method that the galleries show."""
    folder = OUTPUT / "restorations" / frozen.degradation
    folder.mkdir(parents=True, exist_ok=True)
    shown = dict(restored.shown)
    images = shown.pop("images")
    images = images.reshape(-1, 1 + method.extra_draws, *images.shape[1:])
    shown["images"] = images[:, 0]
    if method.extra_draws:
        shown |= {"draws": images[:, 1:], "std": decode(images).std(dim=1)}
    save_file({name: t.contiguous() for name, t in shown.items()}, folder / f"{file_name(method.name)}.safetensors")
    if frozen.truth is not None:
        save_file({"images": frozen.truth[:n_shown].contiguous()}, folder / "truth.safetensors")
