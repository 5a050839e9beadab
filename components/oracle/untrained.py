"""What InvFusion-G knows of the oracle's first prior before any training, at several levels of measurement noise.

`python -m components.oracle.untrained` finds the clusters of `oracle.training` among draws of the prior and writes
reports/untrained.json, in the form of reports/oracle.json: for each family and each level the excess MSE of the Wiener
filter and of the clusters, their draws against exact ones by the sampler that judges trained models; and on NPPC's own
family the variance in its directions and their deviations. One model serves all levels.

Untrained, the network's own part is zero and the denoiser is that of the clusters, which a test holds. So draws and
components are asked of the oracle's own form of them, in minutes where network and posterior together take an hour.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from components import cli
from components.oracle.cell import add_numbers, with_numbers
from components.oracle.cell import line as of_distance
from components.oracle.models import components_results, draws_results, measured_sets, posterior_results
from components.oracle.oracle import fit_priors
from components.oracle.records import OracleRecord, Results
from components.oracle.training import GAUSSIAN, Bench, fitted_prior
from components.params import Params
from components.records import write_records
from invfusion.errors import ConfigError
from invfusion.oracle import ExactDenoiser, mixture_of

log = logging.getLogger(__name__)

RECORDS = Path("reports/untrained.json")
SIGMA_Y = (0.0, 0.1, 0.2)
# What its records tell of.
SHOWN = ("excess_mse", "sliced_wasserstein", "spread", "coverage_90", "nppc_captured", "nppc_std_ratio")


def untrained(params: Params) -> Path:
    """Judge, log and write; returns the path of the records."""
    records = []
    for results in _judged(params):
        records += results.records
        for r in results.records:
            if r.metric in SHOWN:
                log.info("%s", line(r))
    write_records(records, RECORDS)
    return RECORDS


def line(r: OracleRecord) -> str:
    """One number in words, with its interval; a distance is told over the noise floor."""
    where = f"{r.degradation}@{r.sigma_y:g}"
    if r.metric == "sliced_wasserstein":
        return f"{where} {of_distance(r)}"
    value, low, high = ("–" if v is None else f"{v:.4g}" for v in (r.value, r.low, r.high))
    return f"{where} {r.method} {r.metric}: {value} ({low} to {high})"


def _judged(params: Params) -> Iterator[Results]:
    name, prior = next(iter(fit_priors(params).items()))
    bench = Bench(params, name, prior, GAUSSIAN, width=0)
    start = fitted_prior(bench)
    if start.clusters is None:
        raise ConfigError(
            "oracle.training.clusters is 1: there is no more to judge than the Wiener filter; set it to 2 or more"
        )
    denoiser = ExactDenoiser(mixture_of(start.clusters), params.oracle.training.n_components)
    for sigma_y in SIGMA_Y:
        level = bench.with_training(sigma_y=(sigma_y, sigma_y))
        yield posterior_results(level, start, measured_sets(level))
        for family in params.oracle.families:
            yield draws_results(level, family, denoiser)
        yield components_results(level, denoiser)


def main() -> None:
    """Judge and tell."""
    command = cli.parser(__doc__)
    add_numbers(command)
    with cli.started(command) as options:
        log.info("%s", untrained(with_numbers(options)))


if __name__ == "__main__":
    main()
