"""Quality against network calls where the truth is known: a diffusion model, what consistency tuning makes of it, and
flow matching.

`python -m components.oracle.few_steps` trains all three on draws of the oracle's first prior (its diffusion model is
that of `make oracle`, where it is at hand) and writes reports/few_steps.json and a picture of it: for each family,
sampler and number of calls the distance to exact draws over the noise floor, how often a 90% interval holds the truth,
the spread, and beside them the error of single draws, which alone would hide a lost spread.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from components import cli
from components.oracle.oracle import fit_priors
from components.oracle.records import Candidate, OracleRecord, Results, of_verdict, record
from components.oracle.report import by
from components.oracle.training import Bench, diffusion_model, distilled
from components.params import Params
from components.records import write_records
from components.reporting import figures
from invfusion.degradations import DegradationFamily
from invfusion.diffusion.losses import ConsistencyLoss
from invfusion.models import Denoiser
from invfusion.names import kind_of
from invfusion.operators import Measurement
from invfusion.oracle import Oracle, draw_measurements
from invfusion.rng import generators, randn
from invfusion.samplers import DEIS, Consistency, DPMpp2M, Flow, Heun, Sampler

log = logging.getLogger(__name__)

RECORDS = Path("reports/few_steps.json")
FIGURE = RECORDS.with_suffix(".png")
# As the default profile has it: where each has few images, more stages make samples worse.
STAGES = 3
DIFFUSION: tuple[Sampler, ...] = (
    *(Heun(n_steps=n) for n in (1, 2, 3, 5, 9, 18)),
    *(DPMpp2M(n_steps=n) for n in (2, 4, 8)),
    *(DEIS(n_steps=n) for n in (8, 10)),
)
CONSISTENT: tuple[Sampler, ...] = tuple(Consistency(n_steps=n) for n in (1, 2, 4))
MATCHED: tuple[Sampler, ...] = tuple(Flow(n_steps=n) for n in (2, 4, 18))
# Of one range of pixels, [-1, 1].
RANGE = 2.0
# A row of the picture for each, with the value of exact draws where it is known.
DISTANCE, COVERAGE, SPREAD, PSNR = "distance / floor", "90% covers", "spread", "PSNR of one draw"
ROWS = {"sliced_wasserstein": DISTANCE, "coverage_90": COVERAGE, "spread": SPREAD, "psnr": PSNR}
EXACT = {DISTANCE: 1.0, COVERAGE: 0.9, SPREAD: 1.0}


def few_steps(params: Params) -> Path:
    """Train, judge, write, draw; returns the path of the records."""
    name, prior = next(iter(fit_priors(params).items()))
    bench = Bench(params, name, prior, "invfusion", params.oracle.training.widths[-1])
    teacher = diffusion_model(bench, bench.chosen.total_images)
    stage_images = max(bench.chosen.distill_images // STAGES, 1)
    loss = ConsistencyLoss(stage_images=stage_images, max_stage=STAGES - 1)
    student = distilled(bench, "consistency", loss, bench.families, lambda start: start)
    flow = diffusion_model(replace(bench, model="flow"), bench.chosen.total_images)
    models = ((teacher, bench.label, DIFFUSION), (student, "Consistency", CONSISTENT), (flow, "Flow matching", MATCHED))
    records = [r for family in params.oracle.families for r in _judge(bench, family, models)]
    write_records(records, RECORDS)
    draw(records)
    return RECORDS


def draw(records: Iterable[OracleRecord]) -> Path:
    """The picture: quality against network calls, a row for each quantity, a column for each family."""
    panels = {
        (ROWS[metric], family): {
            method: figures.points(same, lambda r: r.nfe, _drawn)
            for method, same in by(found, lambda r: r.method).items()
        }
        for (metric, family), found in by(records, lambda r: (r.metric, r.degradation)).items()
        if metric in ROWS
    }
    return figures.lines(FIGURE, panels, "network calls", log_y={DISTANCE, SPREAD}, level=EXACT)


def _drawn(r: OracleRecord, value: float) -> float:
    return value / r.floor if ROWS[r.metric] == DISTANCE and r.floor else value


def _judge(
    bench: Bench, family: DegradationFamily, models: Iterable[tuple[Denoiser, str, tuple[Sampler, ...]]]
) -> Iterator[OracleRecord]:
    chosen, seed = bench.params.oracle, bench.params.seed
    measurements = draw_measurements(bench.prior, family, chosen.n_measurements, bench.sigma_y, seed)
    oracle = Oracle(bench.prior, measurements, chosen.n_samples, seed)
    for model, label, samplers in models:
        for sampler in samplers:
            draw = Candidate(sampler, model)
            verdict = oracle.judge(draw)
            head = bench.head(f"{label}, {kind_of(sampler)}", kind_of(family), draw.nfe) | {"n": chosen.n_measurements}
            found = [*of_verdict(head, verdict).records, record(head, "psnr", *_psnr(bench, sampler, model, family))]
            log.info("%s", _line(Results(found)))
            yield from found


def _psnr(bench: Bench, sampler: Sampler, model: Denoiser, family: DegradationFamily) -> tuple[float, float, float]:
    """Of single draws on fresh images, with the 95% interval of its mean."""
    seed, n = bench.params.seed, bench.chosen.n_test
    x = bench.prior.sample(generators(seed, "few-steps/image", range(n))).float()
    operator = family.sample(n, bench.prior.image_shape, generators(seed, "few-steps/operator", [0])[0])
    noise = randn(operator.measurement_shape, generators(seed, "few-steps/noise", range(n)))
    measurement = Measurement.of(x, operator, bench.sigma_y, noise)
    with torch.no_grad():
        restored = sampler.sample(model, measurement, seed=seed).x
    values = 20 * math.log10(RANGE) - 10 * (restored - x).square().flatten(1).mean(1).log10()
    mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(n)
    return mean, mean - half, mean + half


def _line(results: Results) -> str:
    values = {r.metric: r for r in results.records}
    distance = values["sliced_wasserstein"]
    return (
        f"{distance.degradation}, {distance.method}, {distance.nfe} calls: {distance.ratio:.2f} of the floor, coverage "
        f"{values['coverage_90'].value:.2f}, spread {values['spread'].value:.2f}, PSNR {values['psnr'].value:.2f}"
    )


def main() -> None:
    """Train and judge."""
    with cli.started(cli.parser(__doc__)) as options:
        log.info("%s", few_steps(options.params))


if __name__ == "__main__":
    main()
