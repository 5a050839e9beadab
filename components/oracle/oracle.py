"""Judge samplers with an ideal denoiser, and small trained models, on priors whose posteriors are known exactly.

Reads  artifacts/staged  (the images that the priors are fitted to) and writes, relative to the project's root:

1. reports/oracle.json: a flat list of records
       {"judgement", "prior", "method", "settings", "degradation", "sigma_y", "n", "nfe", "metric",
        "value", "low", "high", "floor", "ratio"}
   judgement: "sampler" (an ideal denoiser) or "model" (a trained one). value: 6 significant digits, or null with one
   more key "unavailable". low, high: 95% bootstrap interval over measurements or images. floor: what exact draws score;
   ratio: value over floor, null where a number has none. n: measurements (of draws) or images (of estimates).
   metric of draws: sliced_wasserstein, mean_error, covariance_error (relative to the posterior's spread), spread (over
       the exact one), coverage_90, tarp_gap; of models also: excess_mse (MSE of the MMSE estimate over Bayes' own, 1 is
       optimal; such a record has the keys images and width of the training), nppc_captured (posterior variance in the
       predicted directions over that in the true ones), nppc_std_ratio (predicted over true deviation along them).
   method: the sampler's kind, "exact" and the decoys; or the model with its readout.
2. artifacts/oracle/curves.json: TARP's curve and the coverage of central intervals for each cell, on a grid of levels,
   and predicted against true deviations.
3. reports/oracle.html with reports/oracle_figures: the same as tables and plots.

A killed run continues where it stopped: finished cells lie in state/oracle.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn.functional import avg_pool2d

from components.oracle import models as oracle_models
from components.oracle import report as oracle_report
from components.oracle.judging import Cell, judge_cell
from components.oracle.records import Job, Results, in_parallel, write
from components.params import Params, PriorConfig
from components.paths import STAGED
from invfusion.codec import decode
from invfusion.data import StagedDataset
from invfusion.errors import ConfigError
from invfusion.oracle import GaussianMixture, fit_mixture
from invfusion.samplers import SAMPLERS, Sampler

log = logging.getLogger(__name__)

RECORDS = Path("reports/oracle.json")
CURVES = Path("artifacts/oracle/curves.json")


def oracle(params: Params) -> Path:
    """Run both judgements and write what the head of this file lists; returns the page's path.

    Raises:
        ConfigError: a prior does not fit the staged images.
    """
    priors = fit_priors(params)
    # The models take longest: they go first.
    models, cells = oracle_models.jobs(params, *next(iter(priors.items()))), sampler_jobs(params, priors)
    done = in_parallel([*models, *cells])
    results = Results.joined(done[len(models) :] + done[: len(models)])
    write(results, RECORDS, CURVES)
    page = oracle_report.write_page(params, results, priors)
    log.info("%d records in %s; the page is %s", len(results.records), RECORDS, page)
    return page


def fit_priors(params: Params) -> dict[str, GaussianMixture]:
    """The priors by name, fitted to all training images."""
    dataset = StagedDataset(STAGED, "train")
    images = decode(dataset.read(range(len(dataset))))
    return {
        prior.name: fit_mixture(
            resized(prior, images), prior.n_components, prior.rank, seed=params.seed, floor=prior.floor
        )
        for prior in params.oracle.priors
    }


def resized(prior: PriorConfig, images: Tensor) -> Tensor:
    """Images (N, C, H, W) averaged down to the prior's size and channels."""
    factor, rest = divmod(images.shape[-1], prior.image_size)
    if rest:
        raise ConfigError(
            f"oracle prior '{prior.name}': images of {images.shape[-1]} pixels cannot be averaged to {prior.image_size}"
        )
    gray = images.mean(1, keepdim=True) if prior.channels == 1 else images
    return avg_pool2d(gray, factor)


def sampler_jobs(params: Params, priors: dict[str, GaussianMixture]) -> list[Job]:
    """One job for each prior, family and noise level: all samplers and decoys on it."""
    chosen = params.oracle
    cells = [Cell(params, *p, f, s) for p in priors.items() for f in chosen.families for s in chosen.sigma_y]
    return [partial(judge_cell, cell, samplers_to_judge(chosen.samplers)) for cell in cells]


def samplers_to_judge(listed: Sequence[Sampler]) -> list[Sampler]:
    """The listed settings, and at its defaults every registered sampler of posteriors that is not among them."""
    kinds = {type(sampler) for sampler in listed}
    others = [kind() for kind in SAMPLERS.values() if kind not in kinds]
    return [s for s in [*listed, *others] if type(s).follows in ("posterior", "approximation")]
