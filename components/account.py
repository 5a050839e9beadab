"""What a profile takes, before any of it is run: time, memory and disk of every stage, and what does not fit.

FLOPs are counted in closed form (`invfusion.models.flops`); a machine's speed is measured by a small training step, or
is that of a named GPU at the share of its peak that the paper's own trainings reached. Sampling costs are the calls of
each method's sampler, counted with a stand-in for the network. What the Gaussian posterior takes is timed on this
machine's CPU with a stand-in for the images' prior; on a GPU it is the share that it had on one. Staging is timed on
one image and on one small matrix, judging on one small distance between sets.
"""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor

from components.evaluation.judging import MAX_SET_RESAMPLES
from components.evaluation.methods import Column, Method, columns
from components.evaluation.restoring import MAX_COMPONENTS
from components.params import Params, PriorFitConfig
from components.reporting.experiments import Experiment, Model
from invfusion.codec import encode
from invfusion.data.images import open_image, to_array, to_png, to_rgb
from invfusion.data.manifest import read_manifest
from invfusion.degradations import FAMILIES, DegradationFamily, members_of
from invfusion.errors import ConfigError, DataError
from invfusion.gaussian import GaussianPrior
from invfusion.gaussian.covariance import Coloured, LowRank
from invfusion.measuring import NOISELESS, draw_operator, measure_batch
from invfusion.metrics.tools.features import INCEPTION_FILE
from invfusion.metrics.tools.frechet import frechet
from invfusion.models import DenoiserConfig, kept_by_shapes
from invfusion.models.acceleration import TRAINING_PASSES, is_to_compile
from invfusion.models.activations import GIB, TRAINING_BYTES, USABLE, Kept
from invfusion.models.flops import activation_numbers, forward_flops
from invfusion.models.preconditioning import preconditioning_for
from invfusion.noise import Noise
from invfusion.operators import LinearOperator, MaskOperator, Measurement, StridedConvolution
from invfusion.rng import generators, randn
from invfusion.samplers import Sampler
from invfusion.training.step import DTYPES

# A backward pass costs two forward ones.
BACKWARD = 3
# Of a training state on disk: weights, moments, average; the former one lies there until the new one is complete.
STATE_BYTES = 2 * 16
TOO_LONG_DAYS = 30.0
# The paper trains FFHQ64 (2^25 images of 244 GFLOP) in about a day on 8 A40, whose peak in fp16 is 150 TFLOP/s.
UTILISATION = 0.08
# The Gaussian posterior is timed on as many images as have so many pixels, at least one and at most MOST of them; of
# operators, FEW draws are averaged.
PIXELS, MOST, FEW = 2**14, 16, 3
# Of the matrices that conditioning builds in float64, how many of a size are there at once: 1.2 to 9 times the memory
# that was measured with a prior of rank 384 (docs/reproduction.md).
COPIES = 4
# What it added to InvFusion's training steps and (eager) sampling calls of FFHQ64 on an H200 (docs/performance.md).
OF_A_STEP, OF_A_CALL = 0.06, 0.17
# What the line of the staged images is of, which is there where the dataset is.
IMAGES = "images"
# Eigenvectors and products are timed on matrices of so many rows; of their matrices so many are there at once when a
# prior is fitted, to within 8% of the memory that was measured (docs/reproduction.md).
ROWS, MATRICES = 768, 6
# Of Inception's features, and of one image's at 299x299 pixels; FEW_FEATURES are timed.
FEATURES, FEW_FEATURES, INCEPTION_FLOPS = 2048, 512, 11.4e9
# The share of colour in the stand-in's images; the rest is grey.
COLOUR = 0.25


@dataclass(frozen=True)
class Machine:
    """flops: per second that it reaches; memory, disk: bytes that are there; is_gpu: whether networks run on one."""

    name: str
    flops: float
    memory: float
    disk: float
    is_gpu: bool = False

    @classmethod
    def named(cls, name: str) -> "Machine":
        """One GPU of GPUS, with this machine's disk."""
        peak, gigabytes = GPUS[name]
        return cls(name, peak * UTILISATION, gigabytes * 1e9, shutil.disk_usage(".").free, is_gpu=True)

    @classmethod
    def this(cls, flops: float, device: torch.device) -> "Machine":
        """The one that this runs on, at a measured speed."""
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            return cls(torch.cuda.get_device_name(device), flops, memory, shutil.disk_usage(".").free, is_gpu=True)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls("this machine's CPU", flops, memory, shutil.disk_usage(".").free)


# Peak FLOP/s of dense products in 16 bits, and GB of memory, as their makers state them.
GPUS = {"a40": (149.7e12, 48.0), "a100": (312e12, 80.0), "h100": (989e12, 80.0), "h200": (989e12, 141.0)}


@dataclass(frozen=True)
class Conditioning:
    """What the Gaussian posterior takes for one image. first, again: seconds of the first call on its measurement, and
    of each further one; memory: bytes."""

    first: float = 0.0
    again: float = 0.0
    memory: float = 0.0

    def seconds(self, calls: int) -> float:
        """Of all calls on one measurement."""
        return self.first + max(calls - 1, 0) * self.again


# The parameters of a model, by the parameters of its experiment and its recipe's name.
Count = Callable[[Params, str], int]


@dataclass(frozen=True)
class Activations:
    """What a training step keeps for its backward pass, of so many calls on so many images.

    budget: bytes of it that may be held, None for what a GPU has, or on a CPU all; flops: of all forward passes that a
    backward pass goes through; compiled: whether a GPU's layers are.
    """

    kept: Kept
    n_images: int
    n_calls: int
    budget: float | None
    flops: float
    compiled: bool

    def on(self, machine: Machine, beside: float) -> tuple[float, float]:
        """Bytes that a machine holds, with so many bytes beside, and the share of what layers keep that it computes
        again."""
        kept = self.kept.by_compiled_layers() if self.compiled and machine.is_gpu else self.kept
        room = USABLE * machine.memory - beside if machine.is_gpu else math.inf
        n = kept.fewest(self.n_images, room if self.budget is None else self.budget, self.n_calls)
        return kept.of(self.n_images, n, self.n_calls), kept.share(n)


@dataclass(frozen=True)
class Line:
    """What one stage, or one method of it, takes: bytes of memory and disk. cpu_seconds: of staging, of drawing
    operators and of distances between sets; gaussian_seconds: of the Gaussian posterior; both on this machine's CPU.
    calls: network calls per image, where images are restored; activations: beside memory and flops, where something is
    trained.
    """

    stage: str
    what: str
    flops: float
    cpu_seconds: float
    memory: float
    disk: float
    calls: int | None = None
    gaussian_seconds: float = 0.0
    activations: Activations | None = None

    def recomputed(self, machine: Machine) -> float:
        """The share of what layers keep that is computed again there, so that it fits."""
        return 0.0 if self.activations is None else self.activations.on(machine, self.memory)[1]

    def held(self, machine: Machine) -> float:
        """Bytes of memory there."""
        return self.memory + (0.0 if self.activations is None else self.activations.on(machine, self.memory)[0])

    def computed(self, machine: Machine) -> float:
        """FLOPs there."""
        again = 0.0 if self.activations is None else self.activations.flops
        return self.flops + self.recomputed(machine) * again

    def seconds(self, machine: Machine) -> float:
        """With operators drawn in the background, the slower of both decides; the Gaussian is not computed there."""
        return max(self.computed(machine) / machine.flops + self.gaussian(machine), self.cpu_seconds)

    def gaussian(self, machine: Machine) -> float:
        """What of it is the Gaussian posterior's: as on this machine's CPU, or where a GPU runs a network, a share."""
        if not machine.is_gpu or not self.flops or not self.gaussian_seconds:
            return self.gaussian_seconds
        return self.flops / machine.flops * (OF_A_STEP if self.calls is None else OF_A_CALL)

    def problems(self, machine: Machine) -> list[str]:
        """Why it does not fit."""
        found = []
        if (held := self.held(machine)) > machine.memory:
            found.append(f"{held / GIB:.0f} GiB of memory, {machine.memory / GIB:.0f} are there")
        if (days := self.seconds(machine) / 86_400) > TOO_LONG_DAYS:
            gaussian = self.gaussian(machine) / 86_400
            found.append(f"{days:.0f} days" + (f", {gaussian:.0f} of them the Gaussian's" if gaussian >= 1 else ""))
        return found


def account(params: Params, sizes: dict[str, int]) -> list[Line]:
    """All stages of a profile; sizes: parameters of each model with fresh weights."""
    known = {**sizes, **{name: sizes[start] for name, start in params.train.distilled.items()}}
    configs = {name: _config(params, name) for name in known}
    trainings = [_training(params, name, configs[name], known[name]) for name in params.models]
    plan = columns(params, params.models)
    return [*staging(params), *trainings, *evaluation(params, plan, configs, known), *judging(params, plan)]


def staging(params: Params) -> Iterator[Line]:
    """Decoding the images, where the dataset is at hand and says how many there are, and fitting their prior."""
    settings, shape = params.data.gaussian_prior, _shape(params)
    n_fitted = math.inf if settings is None else settings.max_images
    with contextlib.suppress(DataError):
        manifest = read_manifest(params.data.shards)
        n_fitted = min(n_fitted, manifest.n_samples.get("train", 0))
        n, most = sum(manifest.n_samples.values()), max(shard.n_samples for shard in manifest.shards)
        pixels = math.prod(shape)
        # A shard is decoded, and then stacked; what is staged lies in DVC's cache too.
        yield Line("stage", IMAGES, 0, n * _decoded(shape), 2 * most * pixels, 2 * n * pixels)
    if settings is not None:
        yield _fitted(settings, shape, int(n_fitted))


@cache
def _decoded(shape: tuple[int, int, int]) -> float:
    """Seconds of one image, white noise, which takes longest."""
    pixels = encode(randn(shape, generators(0, "account/png", range(1))))[0]
    content = to_png(Image.fromarray(pixels.movedim(0, -1).numpy()))

    def decode() -> None:
        to_array(to_rgb(open_image(content, "a stand-in"), "a stand-in"))

    decode()  # The first one also waits for the format's library.
    return _seconds(decode)


def _fitted(settings: PriorFitConfig, shape: tuple[int, int, int], n: int) -> Line:
    """The prior of n images, fitted on the CPU. Finding the clusters themselves is not counted."""
    numbers = math.prod(shape)
    if settings.form == "stationary":
        # Images, their combined channels and the complex spectra of these; transforms take next to no time.
        return Line("stage", "Gaussian prior", 0, 0, (4.0 + 8.0 * 4) * n * numbers, 2 * 8.0 * 2 * numbers)
    coloured, clustered = settings.form == "coloured", settings.clusters > 1
    pixels = numbers // shape[0] if coloured else numbers
    # Of clusters a second covariance is fitted to what is left; of coloured ones, to the mirrored images too.
    fits = [n, 2 * n if coloured else n] if clustered else [n]
    eigenvectors, product = _of_a_cube()
    seconds = sum(eigenvectors * (rows := min(m, pixels)) ** 3 + product * m * pixels * rows for m in fits)
    copies = (7 if coloured else 3) if clustered else 1
    rank = min(settings.rank or n - 1, numbers)
    bases = settings.clusters + 1 if settings.own_covariances else len(fits)
    return Line(
        "stage", "Gaussian prior", 0, seconds * (shape[0] if coloured else 1),
        4.0 * n * numbers + 8.0 * (n * (copies * numbers + pixels) + MATRICES * min(max(fits), pixels) ** 2),
        2 * 8.0 * ((1 + (settings.clusters if clustered else 0)) * numbers + bases * rank * pixels),
    )  # fmt: skip


@cache
def _of_a_cube() -> tuple[float, float]:
    """Seconds of eigenvectors and of a product, for each number of the cube of a matrix's rows."""
    matrix = randn((ROWS, ROWS), generators(0, "account/fit", range(1)))[0].double()
    product = _seconds(lambda: matrix @ matrix.mT)
    return _seconds(lambda: torch.linalg.eigh(matrix + matrix.mT)) / ROWS**3, product / ROWS**3


def of_experiment(experiment: Experiment, params: Params, count: Count) -> list[Line]:
    """All trainings and restorations of a table or figure, without the rows whose model cannot be made.

    params: as it changes them.
    """
    trained: dict[str, tuple[str, Params]] = {}
    for model in dict.fromkeys(method.model for method in params.methods.values() if method.model):
        with contextlib.suppress(ConfigError):
            spec = experiment.models.get(model) or Model(train=model)
            trained[model] = spec.train, experiment.changed_for(model, params)
    plan = [column for column in columns(params, trained) if column.kind in experiment.families]
    for name, changed in list(trained.values()):
        while (before := changed.starts_from(name)) is not None:
            name = before
            trained.setdefault(name, (name, changed))
    configs = {model: _config(changed, name) for model, (name, changed) in trained.items()}
    sizes = {model: count(changed, name) for model, (name, changed) in trained.items()}
    trainings = [
        replace(_training(changed, name, configs[model], sizes[model]), what=model)
        for model, (name, changed) in trained.items()
    ]
    return [*trainings, *evaluation(params, plan, configs, sizes), *judging(params, plan)]


def evaluation(
    params: Params, plan: Sequence[Column], configs: dict[str, DenoiserConfig], sizes: dict[str, int]
) -> Iterator[Line]:
    """Every method on every family. Models stay in memory once they were used."""
    weights = 4.0 * sum(sizes[name] for name in {m.model for c in plan for m in c.methods if m.model})
    for column in plan:
        n, drawn = _n_images(params, column), _drawn(params, column.family)
        values = 4.0 * n * (drawn.n_measured + 1)
        # Kept in the evaluation's output, and in DVC's cache.
        yield Line("evaluate", f"{column.kind}: measurements", 0, n * drawn.seconds, 0, 2 * values)
        for method in column.methods:
            config = configs.get(method.model or "")
            yield _restoring(params, column, method, config, drawn, weights)


def inception(params: Params) -> Path:
    """Where Inception's weights lie, if they are at hand."""
    return params.evaluate.weights_dir / INCEPTION_FILE


def judging(params: Params, plan: Sequence[Column]) -> Iterator[Line]:
    """Inception's features, where its weights are at hand: of all images that follow a distribution, of these projected
    and of the real ones; then the distances between sets of them. Other metrics take next to nothing."""
    if not inception(params).is_file():
        return
    n_images, seconds, most = 0, 0.0, 0
    resamples = 1 + min(params.evaluate.bootstrap_resamples, MAX_SET_RESAMPLES)
    for column in plan:
        n, methods = _n_images(params, column), sum(method.is_generative for method in column.methods)
        # Where nothing is measured, or noise is, no image is projected: FID and KID alone.
        projected = column.family is not None and params.evaluate.noise.is_absent
        kernels = 3 * _of_a_cube()[1] * FEATURES * n**2
        n_images += n * methods * (1 + projected)
        seconds += methods * ((1 + projected) * resamples * _frechet_distance(n) + kernels)
        most = max(most, n if methods else 0)
    if n_images:
        # And of the real images, once.
        flops = (n_images + most) * INCEPTION_FLOPS
        yield Line("judge", "Inception's features", flops, 0, 4.0 * most * FEATURES, 0)
        # Both sides' features in float64, and what a decomposition copies of them.
        yield Line("judge", "distances of sets", 0, seconds, 8.0 * 4 * most * FEATURES, 0)


@cache
def _frechet_distance(n: int) -> float:
    """Seconds of one, of n images on either side: timed with fewer features, and images in proportion."""
    share = FEATURES // FEW_FEATURES
    features = randn((max(n // share, 2), FEW_FEATURES), generators(0, "account/features", range(2)))
    distances = frechet(features[0], features[1])
    return _seconds(lambda: distances(torch.ones(1, len(features[0]), dtype=torch.float64), None)) * share**3


def _reader(method: Method, config: DenoiserConfig | None) -> DenoiserConfig | Sampler | None:
    """What may ask the Gaussian posterior: a sampler that needs nothing else, or the model."""
    return method.sampler if method.sampler is not None and "prior" in method.sampler.requires else config


def _working(method: Method, config: DenoiserConfig | None) -> float:
    """Bytes for one image while it is restored: what a backward pass needs is kept where a method differentiates."""
    if config is None:
        return 0.0
    return kept_by_shapes(config).image if _differentiates(method) else 4.0 * activation_numbers(config)


def _differentiates(method: Method) -> bool:
    return method.sampler is not None and "grad" in method.sampler.requires


def _restoring(
    params: Params, column: Column, method: Method, config: DenoiserConfig | None, drawn: "Drawn", weights: float
) -> Line:  # fmt: skip
    n = _n_images(params, column)
    images = n + min(n, max(params.report.gallery_images, params.evaluate.calibration_images)) * method.extra_draws
    calls = 0 if method.sampler is None or config is None else calls_of(params, method.sampler, config)
    passes = calls * (BACKWARD if _differentiates(method) else 1)
    flops = 0.0 if config is None else images * passes * forward_flops(config)
    told = None if method.withheld else column.family
    gaussian = _conditioning(params, _reader(method, config), told, params.evaluate.noise)
    each = _working(method, config) + 4.0 * drawn.n_numbers + gaussian.memory
    return Line(
        "evaluate", f"{column.kind}: {method.name}", flops, images * drawn.seconds,
        weights + params.evaluate.batch_size * each, _kept_on_disk(params, column, method, config, images), calls,
        images * gaussian.seconds(calls),
    )  # fmt: skip


def _kept_on_disk(params: Params, column: Column, method: Method, config: DenoiserConfig | None, images: int) -> float:
    """Bytes of all restorations: images in 8 bits, and of the first ones' mean, components and deviations floats."""
    projected = method.is_generative and column.family is not None and params.evaluate.noise.is_absent
    pixels = params.data.channels * params.data.image_size**2
    found = float(images * pixels * (2 if projected else 1))
    if config is None or method.sampler is None or "components" not in method.sampler.requires:
        return found
    floats = (1 + config.n_components) * pixels + config.n_components
    return found + 4.0 * floats * min(_n_images(params, column), MAX_COMPONENTS)


def calls_of(params: Params, sampler: Sampler, config: DenoiserConfig) -> int:
    """Network calls per image, as a stand-in for the network counts them on images of 8 pixels."""
    if not sampler.uses_denoiser:
        return 0
    guided = params.evaluate.guidance != 1 and config.n_classes > 0 and "components" not in sampler.requires
    return _counted(sampler, params.data.channels) * (2 if guided else 1)


@cache
def _counted(sampler: Sampler, channels: int) -> int:
    shape = (channels, 8, 8)
    x = randn(shape, generators(0, "account/x", range(1)))
    measurement = measure_batch(x, FAMILIES["box_inpainting"](), NOISELESS, 0, 0)
    return sampler.sample(_StandIn(), measurement, seed=0).nfe


class _StandIn:
    """The denoiser of white images, as samplers ask for one."""

    config = SimpleNamespace(n_components=1)

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,  # noqa: ARG002
        class_labels: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        return x * (0.25 / (0.25 + sigma.square())).view(-1, 1, 1, 1)

    def components(self, x: Tensor, sigma: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        """The estimate, and one direction."""
        return self(x, sigma), x[:, None]


def _training(params: Params, name: str, config: DenoiserConfig, size: int) -> Line:
    task = params.task(name)
    images, forward = task.config.total_images, forward_flops(config)
    recipe = params.recipe(name)
    n_calls = getattr(recipe, "n_steps", 1)
    members: Sequence[DegradationFamily | None] = [None] if task.degradation is None else members_of(task.degradation)
    weights = getattr(task.degradation, "weights", None) or [1.0] * len(members)
    draw = _average(weights, [_drawn(params, family).seconds for family in members])
    gaussian = [_conditioning(params, config, family, task.noise) for family in members]
    conditioning = _average(weights, [each.seconds(n_calls + recipe.target_calls) for each in gaussian])
    budget, passed = params.runtime.activation_budget, task.config.micro_batch_size
    activations = Activations(
        kept_by_shapes(config, DTYPES[task.config.precision]),
        passed,
        n_calls,
        budget=None if budget == "auto" else budget * GIB,
        flops=images * forward * n_calls,
        compiled=is_to_compile(params.runtime.compile, "cuda", TRAINING_PASSES * images),
    )
    return Line(
        stage="distill" if name in params.train.distilled else "train",
        what=name,
        flops=images * forward * (BACKWARD * n_calls + recipe.target_calls),
        cpu_seconds=images * draw / max(params.runtime.draw_threads, 1),
        memory=TRAINING_BYTES * size + passed * max(each.memory for each in gaussian),
        activations=activations,
        # The model's folder lies in DVC's cache too.
        disk=STATE_BYTES * size + 2 * 4 * size,
        gaussian_seconds=images * conditioning,
    )


def _average(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


@dataclass(frozen=True)
class Drawn:
    """One operator on the average. seconds: of processor time to draw it; n_measured: entries of its measurement;
    n_numbers: of its tensors."""

    seconds: float = 0.0
    n_measured: float = 0.0
    n_numbers: float = 0.0


def _drawn(params: Params, family: DegradationFamily | None) -> Drawn:
    """The mean of `FEW`."""
    if family is None:
        return Drawn()
    start = time.process_time()
    operators = [draw_operator(family, 1, _shape(params), key, params.seed) for key in range(FEW)]
    seconds = time.process_time() - start
    n_measured = sum(torch.Size(operator.measurement_shape).numel() for operator in operators)
    return Drawn(seconds / FEW, n_measured / FEW, sum(map(_numbers, operators)) / FEW)


def _numbers(operator: LinearOperator) -> float:
    """How many define the operator of one image."""
    return sum(tensor.numel() for tensor in operator.tensors().values()) / operator.batch_size


def _shape(params: Params) -> tuple[int, int, int]:
    return params.data.channels, params.data.image_size, params.data.image_size


def _conditioning(
    params: Params, reader: DenoiserConfig | Sampler | None, family: DegradationFamily | None, noise: Noise
) -> Conditioning:
    """Of a family's measurements; nothing for a model that has another preconditioning."""
    settings = params.data.gaussian_prior
    if settings is None or reader is None:
        return Conditioning()
    if isinstance(reader, DenoiserConfig) and reader.preconditioning != "gaussian":
        return Conditioning()
    return _conditioned(stand_in(settings, _shape(params)), reader, family, noise)


@cache
def stand_in(settings: PriorFitConfig, shape: tuple[int, int, int]) -> GaussianPrior:
    """A prior of images (C, H, W) of that kind and rank, fitted to random images.

    Their power falls with the frequency and is mostly grey, as that of photographs: grey has most of the rank, and how
    a rank is shared among the combinations of the channels decides what conditioning takes.
    """
    rank = settings.rank or min(settings.max_images - 1, torch.Size(shape).numel())
    white = randn(shape, generators(0, "account/prior", range(max(rank + 1, 20 * settings.clusters))))
    h, w = shape[1:]
    frequency = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)).clamp(min=1 / h)
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(h, w))
    images = smooth[:, :1] + COLOUR * smooth
    return GaussianPrior.fit(
        images / (2 * images.std()), **settings.model_dump(exclude={"max_images", "rank"}), rank=rank
    )


@cache
def _conditioned(
    prior: GaussianPrior, reader: DenoiserConfig | Sampler, family: DegradationFamily | None, noise: Noise
) -> Conditioning:
    """The mean of `FEW` draws, each of few images; what a batch has in common is charged to these alone."""
    found = [_one_conditioned(prior, reader, family, noise, key) for key in range(FEW)]
    first, again, memory = (sum(values) / FEW for values in zip(*map(astuple, found), strict=True))
    return Conditioning(first, again, memory)


@torch.no_grad()
def _one_conditioned(
    prior: GaussianPrior, reader: DenoiserConfig | Sampler, family: DegradationFamily | None, noise: Noise, key: int
) -> Conditioning:
    shape = prior.image_shape
    n = min(max(PIXELS // (shape[1] * shape[2]), 1), MOST)
    x = randn(shape, generators(0, "account/x", range(n))).clip(-1, 1)
    measurement = None if family is None else measure_batch(x, family, noise, key, 0)
    memory = _conditioning_bytes(prior, measurement)
    if isinstance(reader, Sampler):
        return Conditioning(_seconds(lambda: reader.sample(prior, measurement, x, seed=0)) / n, 0.0, memory)
    around = preconditioning_for(reader, prior)

    def call() -> None:
        surroundings = around(x, torch.ones(n), measurement)
        if reader.n_components and surroundings.directions is not None:
            surroundings.directions(reader.n_components)

    return Conditioning(_seconds(call) / n, _seconds(call) / n, memory)


def _seconds(run: Callable[[], object]) -> float:
    """By the clock, without the time that other processes had the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return min(time.perf_counter() - clock, time.process_time() - processor)


def _conditioning_bytes(prior: GaussianPrior, measurement: Measurement | None) -> float:
    """Of one image in float64: its operator, and `COPIES` of the image, of the measured basis and of a matrix of the
    rank; of a mask nothing is measured but such matrices."""
    if measurement is None or measurement.y.numel() == 0:
        return 0.0
    operator, covariance = measurement.operator, prior.covariance
    rank = len(covariance.variances) if isinstance(covariance, LowRank) else 0
    rows = 0 if isinstance(operator, MaskOperator) else measurement.y[0].numel()
    if isinstance(operator, StridedConvolution) and isinstance(covariance, Coloured):
        rows //= prior.image_shape[0]
    return 8.0 * (_numbers(operator) + COPIES * (prior.mean.numel() + rank * (rows + rank)))


def _config(params: Params, name: str) -> DenoiserConfig:
    config = params.architecture(params.first_of(name))
    return config.model_copy(update={"n_components": getattr(params.recipe(name), "n_components", 0)})


def _n_images(params: Params, column: Column) -> int:
    return params.evaluate.n_unconditional if column.family is None else params.evaluate.n_images


def table(lines: Iterable[Line], machine: Machine) -> list[str]:
    """The account in words, a line for each; what does not fit says why."""
    lines = list(lines)
    heads = f"{'calls':>6} {'PFLOP':>10} {'time':>9} {'Gaussian':>9} {'memory':>9} {'disk':>9}"
    rows = [f"{'':42} {heads}   on {machine.name}"]
    rows += [_row(line, machine) for line in lines]
    disk, seconds = sum(line.disk for line in lines), sum(line.seconds(machine) for line in lines)
    gaussian = sum(line.gaussian(machine) for line in lines)
    times = f"{duration(seconds):>9} {_gaussian_share(gaussian):>9}"
    rows.append(f"{'all':42} {'':6} {'':10} {times} {'':9} {disk / GIB:>5.1f} GiB")
    if gaussian:
        rows.append(f"Gaussian: {GAUSSIAN_SHARE}")
    if disk > machine.disk:
        rows.append(f"does not fit: {disk / GIB:.0f} GiB of disk, {machine.disk / GIB:.0f} are free in {Path.cwd()}")
    return rows


GAUSSIAN_SHARE = (
    "what the Gaussian posterior takes of the time, measured on this machine's CPU; on a GPU "
    f"{OF_A_STEP:.0%} of a network's steps and {OF_A_CALL:.0%} of its calls, as on an H200 with FFHQ64"
)


def _gaussian_share(seconds: float) -> str:
    return duration(seconds) if seconds else ""


def summary(lines: Sequence[Line], machine: Machine) -> str:
    """A table's account in one line: its trainings, its restorations, which take longest, and what does not fit."""
    trainings = {line.what: line.seconds(machine) for line in lines if line.stage in ("train", "distill")}
    judged = sum(line.seconds(machine) for line in lines if line.stage == "judge")
    restoring, methods = 0.0, dict[str, float]()
    for line in lines:
        if line.stage == "evaluate":
            restoring += line.seconds(machine)
            method = line.what.partition(": ")[2]
            methods[method] = methods.get(method, 0) + line.seconds(machine)
    longest = sorted(methods, key=lambda method: -methods[method])[:3]
    unfit = {
        line.what.rpartition(": ")[2]: "; ".join(problems) for line in lines if (problems := line.problems(machine))
    }
    gaussian = [sum(x.gaussian(machine) for x in lines if (x.stage == "evaluate") is last) for last in (False, True)]
    of_training, of_restoring = (f", Gaussian {duration(seconds)}" if seconds else "" for seconds in gaussian)
    return (
        f"training {duration(sum(trainings.values()))}{of_training} "
        f"({', '.join(f'{name} {duration(seconds)}' for name, seconds in trainings.items()) or 'nothing'}); "
        f"restoring {duration(restoring)}{of_restoring} ({', '.join(f'{m} {duration(methods[m])}' for m in longest)})"
        + (f"; judging {duration(judged)}" if judged else "")
        + "".join(f"; {what} does not fit: {problem}" for what, problem in unfit.items())
    )


def _row(line: Line, machine: Machine) -> str:
    calls = "" if line.calls is None else line.calls
    times = f"{duration(line.seconds(machine)):>9} {_gaussian_share(line.gaussian(machine)):>9}"
    text = (
        f"{line.stage + ' / ' + line.what:42} {calls:>6} {line.computed(machine) / 1e15:>10,.3g} "
        f"{times} {line.held(machine) / GIB:>5.1f} GiB {line.disk / GIB:>5.1f} GiB"
    )
    if share := line.recomputed(machine):
        text += f"   {share:.0%} of what layers keep is computed again"
    problems = line.problems(machine)
    return f"{text}   does not fit: {'; '.join(problems)}" if problems else text


def duration(seconds: float) -> str:
    """In the unit that suits: 12 s, 3.4 min, 5.6 h, 7.8 d."""
    for unit, size, up_to in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86_400)):
        if seconds < up_to:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
