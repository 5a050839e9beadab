"""Train small models on draws of a known prior, of which there is no end, and measure what they lose against Bayes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.oracle.records import (
    STATE,
    Candidate,
    Head,
    Job,
    OracleRecord,
    Results,
    identity,
    kept,
    of_verdict,
    record,
)
from components.params import OracleTrainingConfig, Params
from invfusion import codec
from invfusion.data import Batch
from invfusion.degradations import DegradationFamily, Mixture
from invfusion.diffusion.losses import MMSELoss, NPPCLoss
from invfusion.measuring import Streams, draw_operator
from invfusion.metrics import projected, statistic_interval
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, with_components
from invfusion.names import kind_of
from invfusion.noise import GaussianNoise
from invfusion.operators import Measurement
from invfusion.oracle import GaussianMixture, Oracle, draw_measurements, gaussian_prior
from invfusion.rng import generator, generators, randn
from invfusion.samplers import DDRM, MMSE, NPPC, Heun, SampleOutput, Sampler
from invfusion.training.distributed import Processes
from invfusion.training.loop import train
from invfusion.training.recipes import RECIPES
from invfusion.training.task import Loss, Task

NO_LABEL = -1
# The recipe whose preconditioning is a Gaussian prior: here, the one with the mean and covariance of the truth.
GAUSSIAN = "invfusion_g"
# Samples of one test batch share what a family draws once per batch, such as the stride.
TEST_BATCH = 32
# Noise levels at which the unconditional model is compared with the exact denoiser.
DENOISING = (0.2, 1.0)
RESAMPLES = 500
CODE = (__name__, "invfusion.oracle", "invfusion.training.loop")


@dataclass(frozen=True)
class Bench:
    """A model to train on the prior, with the settings. model: the name of its recipe."""

    params: Params
    name: str
    prior: GaussianMixture
    model: str
    width: int

    @property
    def chosen(self) -> OracleTrainingConfig:
        return self.params.oracle.training

    @property
    def sigma_y(self) -> float:
        """The noise level of the tests, the middle of the training's."""
        return sum(self.chosen.sigma_y) / 2

    @property
    def label(self) -> str:
        """What its records are called."""
        return "InvFusion-G" if self.model == GAUSSIAN else self.model

    @property
    def boxes(self) -> DegradationFamily:
        """What NPPC is trained on."""
        family = self.params.task("nppc").degradation
        assert family is not None
        return family

    @property
    def facts(self) -> dict[str, Any]:
        """What its training depends on."""
        chosen = self.params.oracle
        return {
            "prior": chosen.priors[0].model_dump(),
            "weights": self.prior.log_weights.tolist(),
            "families": [family.model_dump(mode="json") for family in chosen.families],
            "training": chosen.training.model_dump(mode="json"),
            "nppc": self.boxes.model_dump(mode="json"),
            "seed": self.params.seed,
            "model": self.model,
            "width": self.width,
        }

    def head(self, method: str, degradation: str, nfe: int) -> Head:
        """What the records of a model begin with."""
        return {
            "judgement": "model",
            "prior": self.name,
            "degradation": degradation,
            "sigma_y": self.sigma_y,
            "n": self.chosen.n_test,
            "method": method,
            "settings": {"width": self.width},
            "nfe": nfe,
        }

    def kept(self, what: str, compute: Job, **facts: Any) -> Results:
        """One judgement of the model: from disk, or computed now."""
        return kept(self.facts | facts | {"what": what}, CODE, compute)


def jobs(params: Params, name: str, prior: GaussianMixture) -> list[Job]:
    """One job for each model: every kind at the largest width, and InvFusion at the others."""
    widths = params.oracle.training.widths
    models = [(GAUSSIAN, widths[-1]), *(("invfusion", width) for width in reversed(widths))]
    models += [("palette", widths[-1]), ("unconditional", widths[-1])]
    trained_ones = [Bench(params, name, prior, *model) for model in models]
    return [*(partial(judge_model, bench) for bench in trained_ones), partial(judge_wiener, trained_ones[0])]


def judge_model(bench: Bench) -> Results:
    """Train one model, measuring its excess risk on the way; then judge its draws, and distill InvFusion."""
    chosen, sets, largest = bench.chosen, measured_sets(bench), bench.width == bench.chosen.widths[-1]
    oracle = bench.params.oracle
    counts = [n for n in chosen.checkpoints if n < chosen.total_images] + [chosen.total_images]
    parts = [bench.kept("excess", partial(_judge_excess, bench, n, sets), images=n) for n in counts]
    if largest:
        draws = {"n": [oracle.n_measurements, oracle.n_samples]}
        parts += [bench.kept(kind_of(f), partial(_judge_draws, bench, f), **draws) for f in oracle.families]
    if largest and bench.model in ("invfusion", GAUSSIAN):
        parts += [
            bench.kept("mmse", partial(_judge_mmse, bench, sets)),
            bench.kept("nppc", partial(_judge_nppc, bench)),
        ]
    return Results.joined(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Training.


def build(bench: Bench) -> Denoiser:
    """A denoiser of one level with patches of 2 x 2 pixels."""
    channels, *sides = bench.prior.image_shape
    config = DenoiserConfig(
        **RECIPES[bench.model].architecture,
        image_size=(sides[0], sides[1]),
        channels=channels,
        patch_size=2,
        levels=(LevelConfig(width=bench.width, depth=bench.chosen.depth),),
        head_dim=24,
        mapping_width=64,
        mapping_hidden=128,
        dropout=0.0,
    )
    return Denoiser(config, bench.params.seed, gaussian_prior(bench.prior) if bench.model == GAUSSIAN else None)


@dataclass(frozen=True)
class PriorDraws:
    """Draws of the prior in the form of training batches, unquantised; each is seen once."""

    prior: GaussianMixture
    seed: int
    micro_batch_size: int
    highest_label: int = NO_LABEL

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.prior.image_shape)

    def iterate(self, start: int, end: int, step: int = 1, offset: int = 0) -> Iterator[Batch]:
        """As `TrainingStream.iterate`."""
        size = self.micro_batch_size
        for first in range(start + offset * size, end, step * size):
            rows = range(first, first + size)
            x = self.prior.sample(generators(self.seed, "oracle/train", rows))
            yield Batch(codec.to_pixel_scale(x.float()), [f"draw-{i}" for i in rows], torch.full((size,), NO_LABEL))


def trained(bench: Bench, name: str, task: Task, build: Callable[[], Denoiser]) -> Denoiser:
    """The averaged model after the task's images; its training state is kept, and continued by longer tasks."""
    folder = STATE / "training" / f"{name}-{identity(bench.facts, CODE)}"
    stream = PriorDraws(bench.prior, task.seed, task.config.micro_batch_size)
    model = train(task, build(), stream, folder, device=torch.device("cpu"), processes=Processes())
    assert model is not None, "nothing asks it to stop"
    return model


def diffusion_model(bench: Bench, images: int) -> Denoiser:
    """The bench's model after so many images: all families in equal parts, and to generate."""
    config = bench.chosen.model_copy(update={"images": images})
    task = Task(config.loss, _all_families(bench), GaussianNoise(sigma_y=config.sigma_y), config, bench.params.seed)
    return trained(bench, bench.model, bench.params.recipe(bench.model).task(task), partial(build, bench))


def _all_families(bench: Bench) -> Mixture:
    members = [family.model_dump() for family in bench.params.oracle.families]
    return Mixture.model_validate({"members": [*members, {"kind": "null"}]})


def distilled(
    bench: Bench, name: str, loss: Loss, degradation: DegradationFamily, start: Callable[[Denoiser], Denoiser]
) -> Denoiser:
    """A one-step estimator that starts from the trained model."""
    config = bench.chosen.model_copy(update={"images": bench.chosen.distill_images})
    task = Task(loss, degradation, GaussianNoise(sigma_y=config.sigma_y), config, bench.params.seed + 1)
    teacher = partial(diffusion_model, bench, bench.chosen.total_images)
    return trained(bench, name, task, lambda: start(teacher()).requires_grad_(True))


# ---------------------------------------------------------------------------------------------------------------------
# Point estimates.


@dataclass(frozen=True)
class Measured:
    """Measurements with the exact mean (B, C, H, W) of each posterior and its total variance (B,)."""

    measurement: Measurement
    law: GaussianMixture
    mean: Tensor
    risk: Tensor

    @classmethod
    def of(cls, measurement: Measurement, law: GaussianMixture) -> "Measured":
        return cls(measurement, law, law.mean, law.covariance().diagonal(dim1=-2, dim2=-1).sum(1))


def measured_sets(bench: Bench) -> dict[str, list[Measured]]:
    """For each family the same measurements for all models."""
    return {kind_of(f): _measured(bench, f) for f in bench.params.oracle.families}


def _measured(bench: Bench, family: DegradationFamily) -> list[Measured]:
    seed, kind, batches = bench.params.seed, kind_of(family), []
    for start in range(0, bench.chosen.n_test, TEST_BATCH):
        rows = range(start, min(start + TEST_BATCH, bench.chosen.n_test))
        x = bench.prior.sample(generators(seed, "oracle/test", rows)).float()
        streams = Streams(f"oracle/test-operator/{kind}")
        operator = draw_operator(family, len(rows), bench.prior.image_shape, start, seed, streams)
        noise = randn(operator.measurement_shape, generators(seed, f"oracle/test-noise/{kind}", rows))
        measurement = Measurement.of(x, operator, bench.sigma_y, noise)
        batches.append(Measured.of(measurement, bench.prior.given(measurement)))
    return batches


def _judge_excess(bench: Bench, images: int, sets: dict[str, list[Measured]]) -> Results:
    """The excess risk of the MMSE estimate on every family; of the unconditional model, that of denoising."""
    model, total = diffusion_model(bench, images), -(-images // bench.chosen.batch_size) * bench.chosen.batch_size
    if bench.model == GAUSSIAN:
        return _excess(bench, model, bench.label, total, sets)
    if bench.model != "unconditional":
        return _excess(bench, model, f"{bench.model}_mmse", total, sets)
    found = []
    for sigma in DENOISING:
        head = bench.head("unconditional", "denoising", 1) | {"sigma_y": sigma, "images": total, "width": bench.width}
        found.append(excess_record(head, *_denoising_errors(bench, model, sigma), bench.params.seed))
    return Results(found)


def _excess(bench: Bench, model: Denoiser, method: str, images: int, sets: dict[str, list[Measured]]) -> Results:
    found = []
    for degradation, batches in sets.items():
        head = bench.head(method, degradation, 1) | {"images": images, "width": bench.width}
        errors = torch.cat([_error(_read_out(bench, model, MMSE(), b.measurement).x, b.mean) for b in batches])
        found.append(excess_record(head, errors, torch.cat([b.risk for b in batches]), bench.params.seed))
    return Results(found)


def judge_wiener(bench: Bench) -> Results:
    """The excess risk of the best linear estimate, which is trained on nothing."""

    def compute() -> Results:
        prior, found = gaussian_prior(bench.prior), []
        for degradation, batches in measured_sets(bench).items():
            head = bench.head("Wiener", degradation, 0) | {"settings": {}, "images": 0, "width": 0}
            errors = torch.cat([_error(prior.posterior(b.measurement).mean, b.mean) for b in batches])
            found.append(excess_record(head, errors, torch.cat([b.risk for b in batches]), bench.params.seed))
        return Results(found)

    return bench.kept("wiener", compute)


def excess_record(head: Head, errors: Tensor, risks: Tensor, seed: int) -> OracleRecord:
    """1 + E|D - m|^2 / E tr C: the estimate's expected squared error over Bayes' own.

    As the posterior mean m is orthogonal to its error, E|x - D|^2 = E|D - m|^2 + E tr C; with the right-hand side the
    truths' own noise does not enter.
    """
    return ratio_record(head, "excess_mse", errors, risks, generator(seed, "oracle/excess"), plus=1.0)


def ratio_record(
    head: Head, metric: str, above: Tensor, below: Tensor, draws: torch.Generator, plus: float = 0.0
) -> OracleRecord:
    """The ratio of two means over images, (n,) or (n, K) each, with its interval over images; 1 is perfect."""
    above, below = (values.reshape(len(values), -1).sum(1) for values in (above, below))

    def ratio(weights: Tensor) -> float:
        return plus + float((weights @ above) / (weights @ below))

    value = ratio(torch.ones(len(above), dtype=torch.float64))
    return record(head, metric, value, *statistic_interval(ratio, value, len(above), RESAMPLES, draws), floor=1.0)


def _error(estimate: Tensor, mean: Tensor) -> Tensor:
    return (estimate.double() - mean).square().flatten(1).sum(1)


@torch.no_grad()
def _read_out(bench: Bench, model: Denoiser, sampler: Sampler, measurement: Measurement) -> SampleOutput:
    rows = range(measurement.operator.batch_size)
    noise = randn(bench.prior.image_shape, generators(bench.params.seed, "oracle/readout", rows))
    way = generators(bench.params.seed, "oracle/readout-way", rows)
    return sampler.sample(model, measurement, noise, generators=way)


@torch.no_grad()
def _denoising_errors(bench: Bench, model: Denoiser, sigma: float) -> tuple[Tensor, Tensor]:
    rows, seed = range(bench.chosen.n_test), bench.params.seed
    x = bench.prior.sample(generators(seed, "oracle/test", rows)).float()
    noisy = x + sigma * randn(bench.prior.image_shape, generators(seed, "oracle/test-denoising", rows))
    levels = torch.full((len(x),), sigma)
    law = bench.prior.given_noisy(noisy, levels)
    risk = law.covariance().diagonal(dim1=-2, dim2=-1).sum(1)
    return _error(model(noisy, levels), law.mean), risk


# ---------------------------------------------------------------------------------------------------------------------
# Draws, and the distilled estimators.


def _judge_draws(bench: Bench, family: DegradationFamily) -> Results:
    """Posterior samples of a trained model; the unconditional one restores by DDRM."""
    sampler = DDRM() if bench.model == "unconditional" else Heun(n_steps=bench.chosen.n_steps)
    method = "unconditional_ddrm" if bench.model == "unconditional" else bench.label
    chosen, seed = bench.params.oracle, bench.params.seed
    measurements = draw_measurements(bench.prior, family, chosen.n_measurements, bench.sigma_y, seed)
    draw = Candidate(sampler, diffusion_model(bench, bench.chosen.total_images))
    verdict = Oracle(bench.prior, measurements, chosen.n_samples, seed).judge(draw)
    return of_verdict(bench.head(method, kind_of(family), draw.nfe) | {"n": chosen.n_measurements}, verdict)


def _judge_mmse(bench: Bench, sets: dict[str, list[Measured]]) -> Results:
    estimator = distilled(bench, "mmse", MMSELoss(), _all_families(bench), lambda teacher: teacher)
    method = "InvFusion-G distilled" if bench.model == GAUSSIAN else "mmse"
    return _excess(bench, estimator, method, bench.chosen.total_images + bench.chosen.distill_images, sets)


def _judge_nppc(bench: Bench) -> Results:
    """Principal components on in-painting: the variance that they capture, and the deviations that they predict."""
    family, seed = bench.boxes, bench.params.seed
    estimator = distilled(
        bench, "nppc", NPPCLoss(), family, lambda teacher: with_components(teacher, bench.chosen.n_components, seed)
    )
    parts = zip(*_directions(bench, estimator, family), strict=True)
    captured, best, predicted, actual = (torch.cat(part) for part in parts)
    head = bench.head("InvFusion-G NPPC" if bench.model == GAUSSIAN else "nppc", kind_of(family), 1)
    records = [
        ratio_record(head, "nppc_captured", captured, best, generator(seed, "oracle/nppc")),
        ratio_record(head, "nppc_std_ratio", predicted, actual, generator(seed, "oracle/nppc")),
    ]
    deviations = {"predicted": predicted.flatten().tolist(), "actual": actual.flatten().tolist()}
    return Results(records, [head | deviations])


def _directions(
    bench: Bench, estimator: Denoiser, family: DegradationFamily
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per batch: variance in the predicted directions (B,), in the true ones (B,), and along each direction the
    predicted and the exact deviation (B, K).
    """
    for batch in _measured(bench, family):
        output = _read_out(bench, estimator, NPPC(), batch.measurement)
        assert output.components is not None
        assert output.stds is not None
        covariance, directions = batch.law.covariance(), output.components.double()
        along = projected((directions.flatten(2) @ covariance).view_as(directions), directions)
        variances = along.diagonal(dim1=-2, dim2=-1)
        best = batch.law.principal_components(directions.shape[1])[1].square().sum(1)
        yield variances.sum(1), best, output.stds.double(), variances.clamp(min=0).sqrt()
