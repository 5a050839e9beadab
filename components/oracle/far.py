"""The excess over Bayes against training images on a prior far from Gaussian, for both preconditionings.

`python -m components.oracle.far` fits a mixture of 32 components to the training images at 16x16, trains small models
on its draws, and writes reports/far.json and reports/oracle_figures/far.png: for each model, number of training images
and family the excess MSE of the one-step estimate, beside that of the Gaussian posterior and of clusters, which need no
training. The models are InvFusion with EDM's preconditioning, and InvFusion-G from one Gaussian and from clusters.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from components import cli
from components.oracle.models import Measured, excess_results, measured_sets, posterior_results
from components.oracle.oracle import fit_priors
from components.oracle.records import OracleRecord
from components.oracle.report import by
from components.oracle.training import GAUSSIAN, Bench, diffusion_model, fitted_prior
from components.params import Params, PriorConfig
from components.records import write_records
from components.reporting import figures

log = logging.getLogger(__name__)

RECORDS, FIGURE = Path("reports/far.json"), Path("reports/oracle_figures/far.png")
PRIOR = PriorConfig(name="far", image_size=16, n_components=32, rank=32, floor=5e-4)
TRAINING: dict[str, Any] = {
    "sigma_y": (0.1, 0.1),
    "images": 24_000,
    "checkpoints": [1_500, 3_000, 6_000, 12_000],
    "warmup_images": 1_600,
    "decay_start_images": 12_000,
    "ema_half_life": 1_500,
    "cluster_images": 8_000,
    "n_test": 96,
}
WIDTH = 48
# What each model is called: its recipe, and the clusters that it starts from.
MODELS = {
    "InvFusion": ("invfusion", 1),
    "InvFusion-G, one Gaussian": (GAUSSIAN, 1),
    "InvFusion-G, 16 clusters": (GAUSSIAN, 16),
}
NEEDS_NONE = ("Wiener", "Clusters")


def far(params: Params) -> Path:
    """Train, judge, write; returns the path of the records."""
    params = params.model_copy(update={"oracle": params.oracle.model_copy(update={"priors": [PRIOR]})})
    first = Bench(params, PRIOR.name, fit_priors(params)[PRIOR.name], GAUSSIAN, WIDTH).with_training(**TRAINING)
    sets = measured_sets(first)
    records = []
    for label, (model, clusters) in MODELS.items():
        bench = replace(first.with_training(clusters=clusters), model=model)
        for r in _judged(bench, label, sets):
            records.append(r)
            log.info("%s, %d images, %s: %.3f (%.3f to %.3f)", *_words(r))
    write_records(records, RECORDS)
    _draw(records)
    return RECORDS


def _judged(bench: Bench, label: str, sets: dict[str, list[Measured]]) -> Iterator[OracleRecord]:
    if bench.chosen.clusters > 1:
        yield from posterior_results(bench, fitted_prior(bench), sets).records
    for n in [*bench.chosen.checkpoints, bench.chosen.total_images]:
        yield from excess_results(bench, diffusion_model(bench, n), label, n, sets).records


def _words(r: OracleRecord) -> tuple[object, ...]:
    return r.method, r.images, r.degradation, r.value, r.low, r.high


def _draw(records: Sequence[OracleRecord]) -> None:
    """Curves of the models, and a level line for each method without training."""
    counts = sorted({r.images for r in records if r.images and r.method not in NEEDS_NONE})
    drawn = [replace(r, images=n) for r in records for n in (counts if r.method in NEEDS_NONE else [r.images])]
    panels = {
        ("MSE / Bayes MSE − 1", kind): {
            method: figures.points(same, lambda r: r.images, lambda _, value: value - 1)
            for method, same in by(found, lambda r: r.method).items()
        }
        for kind, found in by(drawn, lambda r: r.degradation).items()
    }
    figures.lines(FIGURE, panels, "training images", log_y=True)


def main() -> None:
    """Train and judge."""
    with cli.started(cli.parser(__doc__)) as options:
        log.info("%s", far(options.params))


if __name__ == "__main__":
    main()
