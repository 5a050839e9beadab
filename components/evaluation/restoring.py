"""Restore one measurement set by one method, batch by batch; each batch is kept on disk, whatever is judged of it."""

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from components.checkpoints import file_digests
from components.code import code_digest, code_of
from components.data.prior import PRIOR, staged_prior
from components.evaluation.costs import Meter
from components.evaluation.measurement_sets import Batch, MeasurementSet
from components.evaluation.methods import Method
from components.evaluation.sampling import Task, kept, restore_batch
from components.memo import Facts, Memo, Tensors, identity
from components.params import Params
from components.paths import STAGED
from invfusion.files import sha256_of
from invfusion.gaussian import GaussianPrior
from invfusion.models import Denoiser, compile_denoiser, compiles, load_denoiser, lower_precision, set_attention_backend
from invfusion.operators import OPERATORS, Measurement

STATE = Path("state/evaluate")
# An image's principal components take the room of several images, in float: they are kept, and judged, of so many.
MAX_COMPONENTS = 1000
# Of measurements and what defines their operators, without what these derive of it.
RECENT_BYTES = 2**25
OF_COMPONENTS = frozenset({"mean", "components", "stds"})


@dataclass(frozen=True)
class Costs:
    """nfe: network calls per image; peak_memory_mib: None where unknown."""

    nfe: int
    seconds_per_image: float
    peak_memory_mib: float | None


@dataclass(frozen=True)
class Restored:
    """All restorations of a set by a method. They stay on disk: entries holds the facts of each batch's."""

    memo: Memo
    batches: Sequence[Batch]
    entries: Sequence[Facts]
    n_images: int
    n_draws: int

    @cached_property
    def identity(self) -> str:
        """Other restorations, another name."""
        return identity({"restorations": [identity(facts) for facts in self.entries]})

    @property
    def is_complete(self) -> bool:
        """Whether every batch is there."""
        return all(self.memo.has(facts) for facts in self.entries)

    @cached_property
    def names(self) -> frozenset[str]:
        """What is kept of a batch; see `sampling.kept`."""
        return frozenset(self.memo.stored(self.entries[0]))

    @cached_property
    def diverged(self) -> Tensor:
        """(n,) bool: the images whose first draw did."""
        return self.gather("diverged")

    @cached_property
    def costs(self) -> Costs:
        """What all of it took."""
        parts = [self.memo.stored(facts, ("nfe", "seconds", "peak_memory")) for facts in self.entries]
        peak = max(float(part["peak_memory"]) for part in parts)
        return Costs(
            nfe=max(int(part["nfe"]) for part in parts),
            seconds_per_image=sum(float(part["seconds"]) for part in parts) / sum(len(b.indices) for b in self.batches),
            peak_memory_mib=peak if math.isfinite(peak) else None,
        )

    def gather(self, name: str, n_images: int | None = None) -> Tensor:
        """A tensor of the first draw of each of the first images, (n_images, ...)."""
        return self._gather(name, self.n_images if n_images is None else n_images, 1)

    def gather_draws(self, name: str, n_images: int) -> Tensor:
        """A tensor of all draws of the first images, (n_images, n_draws, ...)."""
        rows = self._gather(name, n_images, self.n_draws)
        return rows.reshape(-1, self.n_draws, *rows.shape[1:])

    def parts(self, names: Collection[str]) -> Iterator[tuple[list[int], Tensors]]:
        """Batch by batch, the images whose first draw did not diverge, and the tensors of these names for them."""
        limit = MAX_COMPONENTS if OF_COMPONENTS & set(names) else self.n_images
        for batch, facts in zip(self.batches, self.entries, strict=True):
            stored = self.memo.stored(facts, {"diverged", *names})
            sound = {job for job, gone in zip(_jobs(batch, "diverged"), stored["diverged"], strict=True) if not gone}
            chosen = sorted(image for image, draw in sound if draw == 0 and image < limit)
            at = {name: {job: row for row, job in enumerate(_jobs(batch, name))} for name in names}
            yield chosen, {name: stored[name][[at[name][image, 0] for image in chosen]] for name in names}

    def _gather(self, name: str, n_images: int, n_draws: int) -> Tensor:
        found: dict[tuple[int, int], Tensor] = {}
        for batch, facts in zip(self.batches, self.entries, strict=True):
            wanted = [
                (job, row) for row, job in enumerate(_jobs(batch, name)) if job[0] < n_images and job[1] < n_draws
            ]
            if wanted:
                tensor = self.memo.stored(facts, [name])[name]
                found |= {job: tensor[row] for job, row in wanted}
        return torch.stack([found[job] for job in sorted(found)])


@dataclass
class RecentMeasurements:
    """Those of one set, as far as they are small: the next method asks for the same again.

    of_set: its identity; kept: by rows.
    """

    of_set: str = ""
    kept: dict[tuple[int, ...], Measurement] = field(default_factory=dict)

    def of(self, frozen: MeasurementSet, indices: tuple[int, ...], device: torch.device) -> Measurement:
        """The measurement of some images of a set, on the device; its operators are shared, and ready to use, what a
        method makes of y is not, which may have been made in inference mode."""
        if self.of_set != frozen.sha256:
            self.of_set, self.kept = frozen.sha256, {}
        found = self.kept.get(indices)
        if found is None:
            found = frozen.measurement(indices).to(device)
            found.operator.prepare()
            if sum(map(_bytes_of, [found, *self.kept.values()])) <= RECENT_BYTES:
                self.kept[indices] = found
        return Measurement(found.y, found.operator, found.sigma_y)


@dataclass
class Restorer:
    """Runs methods. checkpoints: the folder of each model. Models are loaded at their first use and stay loaded."""

    params: Params
    device: torch.device
    checkpoints: Mapping[str, Path]
    memo: Memo = field(default_factory=lambda: Memo(STATE))
    loaded: dict[str, Denoiser] = field(default_factory=dict)
    measured: RecentMeasurements = field(default_factory=RecentMeasurements)

    def denoiser(self, name: str) -> Denoiser:
        """One model, ready to run."""
        if name not in self.loaded:
            denoiser = self.loaded[name] = load_denoiser(self.checkpoints[name], device=self.device)
            set_attention_backend(denoiser, self.params.runtime.attention_backend)
            if self.params.evaluate.precision == "bf16":
                lower_precision(denoiser)
            if compiles(self.params.runtime.compile, self.device, self._least_passes()):
                compile_denoiser(denoiser, self.device)
        return self.loaded[name]

    def _least_passes(self) -> int:
        """Images that pass through a network in the evaluation, if each step of its sampler is one call."""
        wanted = self.params.evaluate
        return wanted.n_images * len(wanted.families) * wanted.sampler.n_steps

    def _source(self, method: Method) -> Denoiser | GaussianPrior | None:
        """What a method's sampler reads out: its model, or the images' Gaussian prior."""
        if method.model is not None:
            return self.denoiser(method.model)
        return staged_prior(STAGED).to(self.device) if method.needs_prior else None

    def restore(self, method: Method, frozen: MeasurementSet) -> Restored:
        """All images of a set, from the batches that are on disk and those that are still to do."""
        self.work(method, frozen)
        restored = self.restored(method, frozen)
        # What other processes are busy with is waited for.
        for batch, facts in zip(restored.batches, restored.entries, strict=True):
            self._batch(method, frozen, batch, facts, wait=True)
        return restored

    def work(self, method: Method, frozen: MeasurementSet) -> None:
        """Compute and keep the batches of a set that are not done and that no other process is busy with."""
        restored, title = self.restored(method, frozen), f"{frozen.degradation} / {method.name}"
        jobs = list(zip(restored.batches, restored.entries, strict=True))
        for batch, facts in tqdm(jobs, desc=title, unit="batch", leave=False, disable=None):
            self._batch(method, frozen, batch, facts, wait=False)

    def restored(self, method: Method, frozen: MeasurementSet) -> Restored:
        """The restorations of a set, whether they are there or not."""
        repeated = range(self.n_repeated(method))
        batches = list(frozen.batches(self.params.evaluate.batch_size, repeated, method.extra_draws))
        shared = self._facts(method, frozen)
        entries = [shared | {"images": batch.indices, "draws": batch.draws} for batch in batches]
        return Restored(self.memo, batches, entries, len(frozen.keys), 1 + method.extra_draws)

    def n_repeated(self, method: Method) -> int:
        """Of how many images there are further draws: those of the galleries and those of the calibration."""
        if not method.extra_draws:
            return 0
        return max(self.params.report.gallery_images, self.params.evaluate.calibration_images)

    def _batch(self, method: Method, frozen: MeasurementSet, batch: Batch, facts: Facts, *, wait: bool) -> None:
        if not self.memo.has(facts):
            self.memo.tensors(facts, lambda: self._compute(method, frozen, batch), wait=wait)

    @torch.inference_mode()
    def _compute(self, method: Method, frozen: MeasurementSet, batch: Batch) -> Tensors:
        # What inference mode makes, operators copy: at 64 pixels a batch of matrices takes hundreds of megabytes.
        with torch.inference_mode(False):
            measurement = self.measured.of(frozen, batch.indices, self.device)
        denoiser = self._source(method)
        keys, labels = [frozen.keys[i] for i in batch.indices], frozen.images.labels[list(batch.indices)]
        task, settings = Task(measurement, keys, batch.draws, labels), self.params.evaluate
        with Meter(self.device) as meter:
            output = restore_batch(
                method.sampler,
                denoiser,
                task,
                seed=self.params.seed,
                guidance=settings.guidance,
                withheld=method.withheld,
            )
        rows = [row for row, job in enumerate(_jobs(batch, "images")) if job in _jobs(batch, "components")]
        projects = method.is_generative and frozen.has_truth and not frozen.is_noisy
        result = kept(output, measurement, projects=projects, rows=rows)
        result |= {"nfe": torch.tensor(output.nfe), "seconds": torch.tensor(meter.seconds, dtype=torch.float64)}
        result["peak_memory"] = torch.tensor(meter.peak_memory, dtype=torch.float64)
        return {name: tensor.cpu().contiguous() for name, tensor in result.items()}

    def _facts(self, method: Method, frozen: MeasurementSet) -> dict[str, object]:
        """What restorations depend on: another model, set, setting or code means other entries."""
        operators = {OPERATORS[group.kind].__module__ for group in frozen.groups}
        code = ("components.evaluation.sampling", *operators, *code_of(method.sampler))
        return {
            "code": code_digest(*sorted(code)),
            "checkpoint": self._source_digest(method),
            "measurements": frozen.sha256,
            # Not the names: another table may call the same thing otherwise.
            "sampler": method.sampler and method.sampler.model_dump(mode="json"),
            "guidance": self.params.evaluate.guidance,
            "withheld": method.withheld,
            "precision": self.params.evaluate.precision,
            "seed": self.params.seed,
        }

    def _source_digest(self, method: Method) -> str | None:
        if method.model is not None:
            return _checkpoint_digest(self.checkpoints[method.model].resolve())
        return _file_digest((STAGED / PRIOR).resolve()) if method.needs_prior else None


def _bytes_of(measurement: Measurement) -> int:
    return measurement.y.nbytes + measurement.operator.nbytes


def _jobs(batch: Batch, name: str) -> list[tuple[int, int]]:
    """(image, draw) of each row that is kept of a batch's tensor."""
    jobs = list(zip(batch.indices, batch.draws, strict=True))
    return [(i, d) for i, d in jobs if d == 0 and i < MAX_COMPONENTS] if name in OF_COMPONENTS else jobs


_file_digest = cache(sha256_of)


@cache
def _checkpoint_digest(folder: Path) -> str:
    return hashlib.sha256("".join(file_digests(folder).values()).encode()).hexdigest()
