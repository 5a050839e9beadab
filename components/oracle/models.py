"""Train small models on draws of a known prior, of which there is no end, and measure what they lose against Bayes."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from components.oracle.records import Job, Record, Results, kept, kind_of, merged, of_verdict, record
from components.params import OracleTrainingConfig, Params
from invfusion import codec
from invfusion.data import Batch
from invfusion.degradations import DegradationFamily, Mixture
from invfusion.diffusion.losses import MMSELoss, NPPCLoss
from invfusion.metrics import projected, statistic_interval
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, Variant, with_components
from invfusion.noise import GaussianNoise
from invfusion.operators import Measurement
from invfusion.oracle import Draw, GaussianMixture, Oracle, draw_measurements
from invfusion.rng import generator, generators, randn
from invfusion.samplers import DDRM, MMSE, NPPC, Heun, SampleOutput, Sampler
from invfusion.training.distributed import Processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper
from invfusion.training.task import Loss, Task

NO_LABEL = -1
# Samples of one test batch share what a family draws once per batch, such as the stride.
TEST_BATCH = 32
# Noise levels at which the unconditional model is compared with the exact denoiser.
DENOISING = (0.2, 1.0)
RESAMPLES = 500


@dataclass(frozen=True)
class Bench:
    """The prior that the models are trained on, with the settings."""

    params: Params
    name: str
    prior: GaussianMixture

    @property
    def chosen(self) -> OracleTrainingConfig:
        return self.params.oracle.training

    @property
    def sigma_y(self) -> float:
        """The noise level of the tests, the middle of the training's."""
        return sum(self.chosen.sigma_y) / 2

    @property
    def boxes(self) -> DegradationFamily:
        """What NPPC is trained on."""
        family = self.params.task("nppc").degradation
        assert family is not None
        return family

    def head(self, method: str, degradation: str, width: int, nfe: int) -> Record:
        """What the records of a model begin with."""
        return {
            "judgement": "model",
            "prior": self.name,
            "degradation": degradation,
            "sigma_y": self.sigma_y,
            "n": self.chosen.n_test,
            "method": method,
            "settings": {"width": width},
            "nfe": nfe,
        }


def jobs(params: Params, name: str, prior: GaussianMixture) -> list[Job]:
    """One job for each model: every variant at the largest width, and InvFusion at the others."""
    bench, widths = Bench(params, name, prior), params.oracle.training.widths
    models: list[tuple[Variant, int]] = [("invfusion", width) for width in reversed(widths)]
    models += [("palette", widths[-1]), ("unconditional", widths[-1])]
    return [partial(_kept, bench, variant, width) for variant, width in models]


def _kept(bench: Bench, variant: Variant, width: int) -> Results:
    chosen = bench.params.oracle
    facts = {
        "prior": chosen.priors[0].model_dump(),
        "weights": bench.prior.log_weights.tolist(),
        "families": [family.model_dump(mode="json") for family in chosen.families],
        "training": chosen.training.model_dump(mode="json"),
        "nppc": bench.boxes.model_dump(mode="json"),
        "n": [chosen.n_measurements, chosen.n_samples],
        "seed": bench.params.seed,
        "variant": variant,
        "width": width,
    }
    return kept(facts, lambda: judge_model(bench, variant, width))


def judge_model(bench: Bench, variant: Variant, width: int) -> Results:
    """Train one model, measuring its excess risk on the way; then judge its draws, and distill InvFusion."""
    sets = measured_sets(bench)
    parts, model = [], build(bench, variant, width)
    for images, averaged in train_on_prior(bench, task_of(bench, variant), model):
        parts.append({"records": list(_excess(bench, averaged, variant, width, images, sets)), "curves": []})
        model = averaged
    if width == bench.chosen.widths[-1]:
        parts += [_judge_draws(bench, model, variant, width, family) for family in bench.params.oracle.families]
    if (variant, width) == ("invfusion", bench.chosen.widths[-1]):
        parts += [_judge_mmse(bench, model, width, sets), _judge_nppc(bench, model, width)]
    return merged(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Training.


def build(bench: Bench, variant: Variant, width: int) -> Denoiser:
    """A denoiser of one level with patches of 2 x 2 pixels."""
    channels, *sides = bench.prior.image_shape
    config = DenoiserConfig(
        variant=variant,
        image_size=(sides[0], sides[1]),
        channels=channels,
        patch_size=2,
        levels=(LevelConfig(width=width, depth=bench.chosen.depth),),
        head_dim=24,
        mapping_width=64,
        mapping_hidden=128,
        dropout=0.0,
    )
    return Denoiser(config, bench.params.seed)


def task_of(bench: Bench, variant: Variant) -> Task:
    """What a diffusion model learns: all families in equal parts, and to generate."""
    degradation = None if variant == "unconditional" else _all_families(bench)
    return Task(
        bench.chosen.loss, degradation, GaussianNoise(sigma_y=bench.chosen.sigma_y), bench.chosen, bench.params.seed
    )


def _all_families(bench: Bench) -> Mixture:
    members = [family.model_dump() for family in bench.params.oracle.families]
    return Mixture.model_validate({"members": [*members, {"kind": "null"}]})


def train_on_prior(bench: Bench, task: Task, denoiser: Denoiser) -> Iterator[tuple[int, Denoiser]]:
    """Train on fresh draws, each seen once; yields the image count and the averaged model at every checkpoint."""
    config = task.config
    stepper = Stepper(task, denoiser.train(), Processes(), torch.device("cpu"))
    ema = EMA(denoiser, config.ema_half_life, config.ema_rampup)
    batches = draws_as_batches(bench.prior, config.micro_batch_size, task.seed)
    waiting = [n for n in bench.chosen.checkpoints if n < config.total_images] + [config.total_images]
    for seen in range(config.batch_size, config.total_images + 1, config.batch_size):
        stepper.step(seen - config.batch_size, batches)
        ema.update(denoiser, seen, config.batch_size)
        if seen >= waiting[0]:
            waiting = [n for n in waiting if n > seen]
            yield seen, _averaged(denoiser, ema)


def _averaged(denoiser: Denoiser, ema: EMA) -> Denoiser:
    model = copy.deepcopy(denoiser)
    model.load_state_dict(ema.weights)
    return model.requires_grad_(False).eval()


def draws_as_batches(prior: GaussianMixture, size: int, seed: int) -> Iterator[Batch]:
    """Draws of the prior in the form of training batches, unquantised."""
    for start in itertools.count(0, size):
        x = prior.sample(generators(seed, "oracle/train", range(start, start + size)))
        pixels = codec.to_pixel_scale(x.float())
        yield Batch(pixels, [f"draw-{start + i}" for i in range(size)], torch.full((size,), NO_LABEL))


def distilled(bench: Bench, loss: Loss, degradation: DegradationFamily, start: Denoiser) -> Denoiser:
    """A one-step estimator that starts from a trained model."""
    config = bench.chosen.model_copy(update={"images": bench.chosen.distill_images, "checkpoints": [1 << 60]})
    task = Task(loss, degradation, GaussianNoise(sigma_y=config.sigma_y), config, bench.params.seed + 1)
    *_, (_, model) = train_on_prior(bench, task, copy.deepcopy(start).requires_grad_(True))
    return model


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
        draws = generator(seed, f"oracle/test-operator/{kind}", start)
        operator = family.sample(len(rows), bench.prior.image_shape, draws)
        noise = randn(operator.measurement_shape, generators(seed, f"oracle/test-noise/{kind}", rows))
        measurement = Measurement.of(x, operator, bench.sigma_y, noise)
        batches.append(Measured.of(measurement, bench.prior.given(measurement)))
    return batches


def _excess(
    bench: Bench,
    model: Denoiser,
    variant: Variant,
    width: int,
    images: int,
    sets: dict[str, list[Measured]],
    method: str = "",
) -> Iterator[Record]:
    """The excess risk of the MMSE estimate on every family; of the unconditional model, that of denoising."""
    extra = {"images": images, "width": width}
    if variant == "unconditional":
        for sigma in DENOISING:
            head = bench.head("unconditional", "denoising", width, 1) | {"sigma_y": sigma}
            yield excess_record(head, *_denoising_errors(bench, model, sigma), bench.params.seed) | extra
        return
    for degradation, batches in sets.items():
        head = bench.head(method or f"{variant}_mmse", degradation, width, 1)
        errors = torch.cat([_error(_read_out(bench, model, MMSE(), b.measurement).x, b.mean) for b in batches])
        yield excess_record(head, errors, torch.cat([b.risk for b in batches]), bench.params.seed) | extra


def excess_record(head: Record, errors: Tensor, risks: Tensor, seed: int) -> Record:
    """1 + E|D - m|^2 / E tr C: the estimate's expected squared error over Bayes' own.

    As the posterior mean m is orthogonal to its error, E|x - D|^2 = E|D - m|^2 + E tr C; with the right-hand side the
    truths' own noise does not enter.
    """

    def ratio(weights: Tensor) -> float:
        return float(1 + (weights @ errors) / (weights @ risks))

    value = ratio(torch.ones(len(errors), dtype=torch.float64))
    low, high = statistic_interval(ratio, value, len(errors), RESAMPLES, generator(seed, "oracle/excess"))
    return record(head, "excess_mse", value, low, high, floor=1.0)


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


def _judge_draws(bench: Bench, model: Denoiser, variant: Variant, width: int, family: DegradationFamily) -> Results:
    """Posterior samples of a trained model; the unconditional one restores by DDRM."""
    sampler = DDRM() if variant == "unconditional" else Heun(n_steps=bench.chosen.n_steps)
    method = "unconditional_ddrm" if variant == "unconditional" else variant
    chosen, seed = bench.params.oracle, bench.params.seed
    measurements = draw_measurements(bench.prior, family, chosen.n_measurements, bench.sigma_y, seed)
    calls: list[int] = []
    verdict = Oracle(bench.prior, measurements, chosen.n_samples, seed).judge(_candidate(model, sampler, calls))
    head = bench.head(method, kind_of(family), width, calls[-1])
    return of_verdict(head | {"n": chosen.n_measurements}, verdict)


def _candidate(model: Denoiser, sampler: Sampler, calls: list[int]) -> Draw:
    @torch.no_grad()
    def draw(measurement: Measurement, noise: Tensor, way: Sequence[torch.Generator]) -> Tensor:
        output = sampler.sample(model, measurement, noise, generators=way)
        calls.append(output.nfe)
        return output.x

    return draw


def _judge_mmse(bench: Bench, model: Denoiser, width: int, sets: dict[str, list[Measured]]) -> Results:
    estimator = distilled(bench, MMSELoss(), _all_families(bench), model)
    images = bench.chosen.total_images + bench.chosen.distill_images
    return {"records": list(_excess(bench, estimator, "invfusion", width, images, sets, "mmse")), "curves": []}


def _judge_nppc(bench: Bench, model: Denoiser, width: int) -> Results:
    """Principal components on in-painting: the variance that they capture, and the deviations that they predict."""
    family = bench.boxes
    kind = kind_of(family)
    grown = with_components(model, bench.chosen.n_components, bench.params.seed)
    estimator = distilled(bench, NPPCLoss(), family, grown)
    parts = zip(*_directions(bench, estimator, family), strict=True)
    captured, best, predicted, actual = (torch.cat(part) for part in parts)
    head = bench.head("nppc", kind, width, 1)
    seed, n = bench.params.seed, len(captured)

    def of_ratio(name: str, above: Tensor, below: Tensor) -> Record:
        def ratio(weights: Tensor) -> float:
            return float((weights @ above) / (weights @ below))

        value = ratio(torch.ones(n, dtype=torch.float64))
        low, high = statistic_interval(ratio, value, n, RESAMPLES, generator(seed, "oracle/nppc"))
        return record(head, name, value, low, high, floor=1.0)

    deviations = {"predicted": predicted.flatten().tolist(), "actual": actual.flatten().tolist()}
    records = [
        of_ratio("nppc_captured", captured, best),
        of_ratio("nppc_std_ratio", predicted.sum(1), actual.sum(1)),
    ]
    return {"records": records, "curves": [head | deviations]}


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
