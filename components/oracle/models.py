"""What small models, trained on a known prior, lose against Bayes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.oracle.records import Candidate, Head, Job, OracleRecord, Results, kept, of_verdict, record
from components.oracle.training import GAUSSIAN, Bench, diffusion_model, distilled, fitted_prior
from components.params import Params
from invfusion.degradations import DegradationFamily
from invfusion.diffusion.losses import MMSELoss, NPPCLoss
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.gaussian import GaussianPosterior, GaussianPrior
from invfusion.measuring import Streams, draw_operator
from invfusion.metrics import projected, statistic_interval
from invfusion.models import Denoiser, with_components
from invfusion.names import kind_of
from invfusion.operators import Measurement
from invfusion.oracle import GaussianMixture, Oracle, draw_measurements
from invfusion.rng import generator, generators, randn
from invfusion.samplers import DDRM, MMSE, NPPC, Heun, SampleOutput, Sampler

# Samples of one test batch share what a family draws once per batch, such as the stride.
TEST_BATCH = 32
# Noise levels at which the unconditional model is compared with the exact denoiser.
DENOISING = (0.2, 1.0)
RESAMPLES = 500


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
    parts = [_kept(bench, "excess", partial(_judge_excess, bench, n, sets), images=n) for n in counts]
    if largest:
        draws = {"n": [oracle.n_measurements, oracle.n_samples]}
        parts += [_kept(bench, kind_of(f), partial(_judge_draws, bench, f), **draws) for f in oracle.families]
    if largest and bench.model in ("invfusion", GAUSSIAN):
        parts += [
            _kept(bench, "mmse", partial(_judge_mmse, bench, sets)),
            _kept(bench, "nppc", partial(_judge_nppc, bench)),
        ]
    return Results.joined(parts)


def _kept(bench: Bench, what: str, compute: Job, **facts: Any) -> Results:
    """One judgement of the model: from disk, or computed now."""
    return kept(bench.facts | facts | {"what": what}, bench.code | {__name__}, compute)


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
        return excess_results(bench, model, bench.label, total, sets)
    if bench.model != "unconditional":
        return excess_results(bench, model, f"{bench.model}_mmse", total, sets)
    found = []
    for sigma in DENOISING:
        head = bench.head("unconditional", "denoising", 1) | {"sigma_y": sigma, "images": total, "width": bench.width}
        found.append(excess_record(head, *_denoising_errors(bench, model, sigma), bench.params.seed))
    return Results(found)


def excess_results(bench: Bench, model: Denoiser, method: str, images: int, sets: dict[str, list[Measured]]) -> Results:
    """The excess risk of a model's MMSE estimate on every family."""
    found = []
    for degradation, batches in sets.items():
        head = bench.head(method, degradation, 1) | {"images": images, "width": bench.width}
        errors = torch.cat([_error(_read_out(bench, model, MMSE(), b.measurement).x, b.mean) for b in batches])
        found.append(excess_record(head, errors, torch.cat([b.risk for b in batches]), bench.params.seed))
    return Results(found)


def judge_wiener(bench: Bench) -> Results:
    """The excess risk of what no network is needed for."""
    return _kept(bench, "wiener", lambda: posterior_results(bench, fitted_prior(bench), measured_sets(bench)))


def posterior_results(bench: Bench, prior: GaussianPrior, sets: dict[str, list[Measured]]) -> Results:
    """The excess risk of the best linear estimate, and of the mean given the clusters where there are any."""
    results = [_of_posterior(bench, "Wiener", 0, sets, prior.posterior)]
    if prior.clusters is not None:
        results.append(_of_posterior(bench, "Clusters", bench.chosen.cluster_images, sets, prior.clusters.posterior))
    return Results.joined(results)


def _of_posterior(
    bench: Bench,
    method: str,
    images: int,
    sets: dict[str, list[Measured]],
    posterior: Callable[[Measurement], GaussianPosterior],
) -> Results:
    found = []
    for degradation, batches in sets.items():
        head = bench.head(method, degradation, 0) | {"settings": {}, "images": images, "width": 0}
        errors = torch.cat([_error(posterior(b.measurement).mean, b.mean) for b in batches])
        found.append(excess_record(head, errors, torch.cat([b.risk for b in batches]), bench.params.seed))
    return Results(found)


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
def _read_out(bench: Bench, model: DenoiserLike, sampler: Sampler, measurement: Measurement) -> SampleOutput:
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
    """Posterior samples of a trained model."""
    return draws_results(bench, family, diffusion_model(bench, bench.chosen.total_images))


def draws_results(bench: Bench, family: DegradationFamily, model: DenoiserLike) -> Results:
    """Posterior samples of a model of the bench's; the unconditional one restores by DDRM."""
    sampler = DDRM() if bench.model == "unconditional" else Heun(n_steps=bench.chosen.n_steps)
    method = "unconditional_ddrm" if bench.model == "unconditional" else bench.label
    chosen, seed = bench.params.oracle, bench.params.seed
    measurements = draw_measurements(bench.prior, family, chosen.n_measurements, bench.sigma_y, seed)
    draw = Candidate(sampler, model)
    verdict = Oracle(bench.prior, measurements, chosen.n_samples, seed).judge(draw)
    return of_verdict(bench.head(method, kind_of(family), draw.nfe) | {"n": chosen.n_measurements}, verdict)


def _judge_mmse(bench: Bench, sets: dict[str, list[Measured]]) -> Results:
    estimator = distilled(bench, "mmse", MMSELoss(), bench.families, lambda teacher: teacher)
    method = "InvFusion-G distilled" if bench.model == GAUSSIAN else "mmse"
    return excess_results(bench, estimator, method, bench.chosen.total_images + bench.chosen.distill_images, sets)


def _judge_nppc(bench: Bench) -> Results:
    """Principal components on in-painting, learnt."""
    n, seed = bench.chosen.n_components, bench.params.seed
    return components_results(
        bench, distilled(bench, "nppc", NPPCLoss(), bench.boxes, lambda teacher: with_components(teacher, n, seed))
    )


def components_results(bench: Bench, estimator: DenoiserLike) -> Results:
    """Principal components on in-painting: the variance that they capture, and the deviations that they predict."""
    family, seed = bench.boxes, bench.params.seed
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
    bench: Bench, estimator: DenoiserLike, family: DegradationFamily
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
