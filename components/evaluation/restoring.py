"""Restore one measurement set by one method, batch by batch; each finished batch is kept on disk until the end."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from components.code import code_digest
from components.evaluation.costs import Meter
from components.evaluation.measurement_sets import Batch, MeasurementSet
from components.evaluation.methods import Method
from components.evaluation.records import SET_METRICS
from components.evaluation.sharing import claim
from components.params import Params
from invfusion.codec import decode, encode
from invfusion.diffusion.guidance import GuidedDenoiser
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import CheckpointError, WeightsUnavailableError
from invfusion.metrics import (
    LPIPS,
    InceptionFeatures,
    captured_energy,
    pixel_features,
    psnr,
    squared_projections,
    squared_residual,
)
from invfusion.metrics import Tools as MetricTools
from invfusion.models import Denoiser, compile_network, load_denoiser, lower_precision, set_attention_backend
from invfusion.operators import Measurement
from invfusion.rng import generator, randn
from invfusion.samplers import SampleOutput, Sampler

STATE = Path("state/evaluate")

# The library's code on which a restoration and its values depend.
_CODE = ("components.evaluation.restoring", "invfusion.samplers")

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tools:
    """What judges sets of images: feature extractors by name, LPIPS, and the reason for each metric that is missing."""

    features: Mapping[str, Features]
    lpips: LPIPS | None
    missing: Mapping[str, str]

    @classmethod
    def find(cls, folder: Path, image_size: int, device: torch.device) -> "Tools":
        """Everything that can be computed on this machine; a missing weight file is said, never replaced."""
        features: dict[str, Features] = {"pixel8x8": pixel_features}
        lpips, missing = None, {}
        tools = MetricTools(folder, image_size, str(device))
        try:
            features["inception"] = InceptionFeatures(tools)
        except WeightsUnavailableError as error:
            missing = dict.fromkeys(SET_METRICS["inception"], str(error))
        try:
            lpips = LPIPS(tools)
        except WeightsUnavailableError as error:
            missing["lpips"] = str(error)
        return cls(features, lpips, missing)


@dataclass(frozen=True)
class Restored:
    """All restorations of one set, sorted by image and draw.

    values: of the first draw of each image that did not diverge; n_diverged: of the others; shown: per image
    that is kept whole and draw; nfe: network calls per image; seconds_per_image; peak_memory_mib: None where unknown.
    """

    values: dict[str, Tensor]
    n_diverged: int
    shown: dict[str, Tensor]
    nfe: int
    seconds_per_image: float
    peak_memory_mib: float | None


@dataclass
class Restorer:
    """Runs methods. checkpoints: the folder of each model. Models are loaded at their first use and kept; `used`
    collects the folders of kept batches.
    """

    params: Params
    device: torch.device
    tools: Tools
    checkpoints: Mapping[str, Path]
    loaded: dict[str, Denoiser] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)

    def denoiser(self, name: str) -> Denoiser:
        """One model, ready to run."""
        if name not in self.loaded:
            denoiser = self.loaded[name] = load_denoiser(self.checkpoints[name], device=self.device)
            set_attention_backend(denoiser, self.params.runtime.attention_backend)
            if self.params.evaluate.precision == "bf16":
                lower_precision(denoiser)
            if self.params.runtime.compile:
                compile_network(denoiser)
        return self.loaded[name]

    def restore(self, method: Method, frozen: MeasurementSet) -> Restored:
        """All images of a set, from the batches that are kept on disk and those that are still to do."""
        batches = self._batches(method, frozen)
        self.work(method, frozen)
        # What other processes are busy with is waited for.
        done = [self._kept(method, frozen, batch, wait=True) for batch in batches]
        return merge(batches, [part for part in done if part is not None], self.n_shown(method))

    def n_shown(self, method: Method) -> int:
        """How many images are kept whole: those of the galleries, and of repeated draws those of the calibration."""
        gallery = self.params.report.gallery_images
        return max(gallery, self.params.evaluate.calibration_images) if method.extra_draws else gallery

    def work(self, method: Method, frozen: MeasurementSet) -> None:
        """Compute and keep the batches of a set that are not done and that no other process is busy with."""
        title = f"{frozen.degradation} / {method.name}"
        for batch in tqdm(self._batches(method, frozen), desc=title, unit="batch", leave=False, disable=None):
            self._kept(method, frozen, batch, wait=False)

    def _batches(self, method: Method, frozen: MeasurementSet) -> list[Batch]:
        shown = range(self.n_shown(method))
        return list(frozen.batches(self.params.evaluate.batch_size, shown, method.extra_draws))

    def _kept(self, method: Method, frozen: MeasurementSet, batch: Batch, *, wait: bool) -> dict[str, Tensor] | None:
        """The result of a batch; None where another process is busy with it and is not waited for."""
        path = self.folder(method, frozen) / f"{_batch_name(batch)}.safetensors"
        if (found := _read(path)) is not None:
            return found
        with claim(path.with_suffix(".lock"), wait) as is_ours:
            if not is_ours:
                return None
            if (found := _read(path)) is not None:
                return found
            result = self._compute(method, frozen, batch)
            unfinished = path.with_suffix(".tmp")
            save_file(result, unfinished)
            os.replace(unfinished, path)
        return result

    def folder(self, method: Method, frozen: MeasurementSet) -> Path:
        """Where the finished batches of a cell are kept."""
        folder = STATE / self._identity(method, frozen)
        if folder not in self.used:
            folder.mkdir(parents=True, exist_ok=True)
            self.used.add(folder)
        return folder

    @torch.inference_mode()
    def _compute(self, method: Method, frozen: MeasurementSet, batch: Batch) -> dict[str, Tensor]:
        measurement = batch.measurement.to(self.device)
        if method.model is not None:
            self.denoiser(method.model)
        with Meter(self.device) as meter:
            output = self._run(method, frozen, batch, measurement)
        truth = None if frozen.truth is None else frozen.truth[list(batch.indices)].to(self.device)
        result = {f"values/{k}": v for k, v in self._judge(method, output, truth, measurement).items()}
        rows = [row for row, i in enumerate(batch.indices) if i < self.n_shown(method)]
        result |= {f"shown/{k}": v[rows] for k, v in _pictures(output).items()}
        result |= {"nfe": torch.tensor(output.nfe), "seconds": torch.tensor(meter.seconds, dtype=torch.float64)}
        result["peak_memory"] = torch.tensor(meter.peak_memory, dtype=torch.float64)
        return {name: tensor.cpu().contiguous() for name, tensor in result.items()}

    def _run(self, method: Method, frozen: MeasurementSet, batch: Batch, measurement: Measurement) -> SampleOutput:
        if method.sampler is None:
            return SampleOutput(measurement.H_pinv_y, nfe=0)
        seed, keys = self.params.seed, [frozen.keys[i] for i in batch.indices]
        # Every method starts an image from the same noise.
        start = [generator(seed, f"evaluate/start/{d}", k) for k, d in zip(keys, batch.draws, strict=True)]
        on_the_way = [generator(seed, f"evaluate/sampler/{d}", k) for k, d in zip(keys, batch.draws, strict=True)]
        noise = randn(measurement.operator.image_shape, start, device=self.device)
        if method.model is None:
            return method.sampler.sample(_no_denoiser, measurement, noise, generators=on_the_way)
        denoiser = self.denoiser(method.model)
        labels = _labels(frozen.labels[list(batch.indices)], denoiser.n_classes, self.device)
        return method.sampler.sample(
            self._guided(denoiser, method.sampler, labels),
            measurement,
            noise,
            generators=on_the_way,
            class_labels=labels,
        )

    def _guided(self, denoiser: Denoiser, sampler: Sampler, labels: Tensor | None) -> DenoiserLike:
        """The denoiser with classifier-free guidance, where it knows classes; guidance has no principal components."""
        guidance = self.params.evaluate.guidance
        if guidance == 1 or labels is None or "components" in sampler.requires:
            return denoiser
        return GuidedDenoiser(denoiser, guidance)

    def _judge(
        self, method: Method, output: SampleOutput, truth: Tensor | None, measurement: Measurement
    ) -> dict[str, Tensor]:
        """The values of each image of a batch, by name."""
        x = finite(output.x)
        images = encode(x)
        values: dict[str, Tensor] = {"diverged": output.diverged}
        if method.is_generative:
            values |= {f"features/{name}": extract(images) for name, extract in self.tools.features.items()}
        if truth is None:
            return values
        residual = squared_residual(x, measurement)
        values |= {
            "psnr": psnr(images, truth),
            "consistency_mse": residual / max(measurement.y.flatten(1).shape[1], 1),
            "consistency_sse": residual,
        }
        if method.is_generative and self.params.evaluate.noise.is_absent:
            # Projected before it is quantised: the paper's CFID.
            consistent = encode(measurement.operator.project(x, measurement.y))
            values |= {f"projected/{name}": extract(consistent) for name, extract in self.tools.features.items()}
        if method.is_generative and self.tools.lpips is not None:
            values["lpips"] = self.tools.lpips(images, truth)
        return values | _component_values(output, decode(truth))

    def _identity(self, method: Method, frozen: MeasurementSet) -> str:
        """What a kept batch depends on: another model, set, setting or code means another folder."""
        facts = {
            "code": code_digest(*_CODE),
            "checkpoint": None
            if method.model is None
            else _checkpoint_digest(self.checkpoints[method.model].resolve()),
            "measurements": frozen.sha256,
            # Not the names: another table may call the same thing otherwise.
            "sampler": method.sampler and method.sampler.model_dump(mode="json"),
            "extra_draws": method.extra_draws,
            "guidance": self.params.evaluate.guidance,
            "precision": self.params.evaluate.precision,
            "seed": self.params.seed,
            "shown": self.n_shown(method),
            "missing": sorted(self.tools.missing),
        }
        return _sha256(json.dumps(facts, sort_keys=True).encode())[:16]


def merge(batches: Sequence[Batch], done: Sequence[Mapping[str, Tensor]], n_shown: int) -> Restored:
    """Put the results of batches into the order of the images, whatever the batches were."""
    jobs = [job for batch in batches for job in zip(batch.indices, batch.draws, strict=True)]
    order = sorted(range(len(jobs)), key=jobs.__getitem__)
    ends = torch.cat([part["values/diverged"] for part in done])
    first = [row for row in order if jobs[row][1] == 0]
    sound = [row for row in first if not bool(ends[row])]
    pictured = [job for job in jobs if job[0] < n_shown]
    picture_order = sorted(range(len(pictured)), key=pictured.__getitem__)
    joined = {name: torch.cat([part[name] for part in done]) for name in done[0] if "/" in name}
    values = {k.removeprefix("values/"): v[sound] for k, v in joined.items() if k.startswith("values/")}
    del values["diverged"]
    peak = max(float(part["peak_memory"]) for part in done)
    return Restored(
        values=values,
        n_diverged=len(first) - len(sound),
        shown={k.removeprefix("shown/"): v[picture_order] for k, v in joined.items() if k.startswith("shown/")},
        nfe=max(int(part["nfe"]) for part in done),
        seconds_per_image=sum(float(part["seconds"]) for part in done) / len(jobs),
        peak_memory_mib=peak if math.isfinite(peak) else None,
    )


def finite(x: Tensor) -> Tensor:
    """The images with grey in the place of those that diverged; they are counted, and stay out of every average."""
    sound = x.isfinite().flatten(1).all(1)
    return x.where(sound.view(-1, 1, 1, 1), 0.0)


def _no_denoiser(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("a method without a model called one")


def _batch_name(batch: Batch) -> str:
    return _sha256(json.dumps([batch.indices, batch.draws]).encode())[:16]


def _read(path: Path) -> dict[str, Tensor] | None:
    """A finished batch, if it is there and whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (FileNotFoundError, SafetensorError):
        return None


def _pictures(output: SampleOutput) -> dict[str, Tensor]:
    shown = {"images": encode(finite(output.x)), "diverged": output.diverged}
    if output.components is not None and output.stds is not None:
        shown |= {"mean": output.x, "components": output.components, "stds": output.stds}
    return shown


def _component_values(output: SampleOutput, truth: Tensor) -> dict[str, Tensor]:
    """How well principal components describe the error; nothing for methods without them."""
    if output.components is None or output.stds is None:
        return {}
    return {
        "nppc_captured_energy": captured_energy(output.x, truth, output.components),
        "nppc_predicted": output.stds.double().square(),
        "nppc_actual": squared_projections(output.x, truth, output.components),
    }


def _labels(labels: Tensor, n_classes: int, device: torch.device) -> Tensor | None:
    """Class labels for a class-conditional model; an image without one gets the index that means no class."""
    if n_classes == 0:
        return None
    return labels.where(labels >= 0, n_classes).to(device)


@cache
def _checkpoint_digest(folder: Path) -> str:
    files = [folder / "config.json", folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: train the model first")
    return _sha256("".join(_sha256(file.read_bytes()) for file in files).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
