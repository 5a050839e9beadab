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
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor
from torch.nn.functional import avg_pool2d

from components.code import code_of
from components.oracle import models as oracle_models
from components.oracle import report as oracle_report
from components.oracle.records import (
    Candidate,
    Head,
    Job,
    Results,
    in_parallel,
    kept,
    of_verdict,
    unavailable,
    write,
)
from components.params import Params, PriorConfig
from invfusion.codec import decode
from invfusion.data import StagedDataset
from invfusion.degradations import DegradationFamily
from invfusion.errors import ConfigError, OperatorError
from invfusion.names import kind_of
from invfusion.oracle import (
    DECOYS,
    ExactDenoiser,
    GaussianMixture,
    Oracle,
    draw_measurements,
    exact_sampler,
    fit_mixture,
    gaussian_prior,
)
from invfusion.samplers import SAMPLERS, Sampler

log = logging.getLogger(__name__)

STAGED = Path("artifacts/staged")
RECORDS = Path("reports/oracle.json")
CURVES = Path("artifacts/oracle/curves.json")
# What judges samplers, but for each sampler's own.
CODE = (f"{__name__}:judge_sampler", "components.oracle.records", "invfusion.oracle")


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


# ---------------------------------------------------------------------------------------------------------------------
# Samplers with an ideal denoiser.


class Cell:
    """One prior, family and noise level; the exact references are made when the first candidate needs them."""

    def __init__(
        self, params: Params, name: str, prior: GaussianMixture, family: DegradationFamily, sigma_y: float
    ) -> None:
        self.params, self.name, self.prior, self.family, self.sigma_y = params, name, prior, family, sigma_y

    @cached_property
    def oracle(self) -> Oracle:
        chosen, seed = self.params.oracle, self.params.seed
        measurements = draw_measurements(self.prior, self.family, chosen.n_measurements, self.sigma_y, seed)
        return Oracle(self.prior, measurements, chosen.n_samples, seed)

    @property
    def head(self) -> Head:
        """What all records of the cell begin with."""
        return {
            "prior": self.name,
            "degradation": kind_of(self.family),
            "sigma_y": self.sigma_y,
            "n": self.params.oracle.n_measurements,
        }

    @property
    def facts(self) -> Head:
        """What its results depend on."""
        chosen = self.params.oracle
        return self.head | {
            "prior": next(p.model_dump() for p in chosen.priors if p.name == self.name),
            "weights": self.prior.log_weights.tolist(),
            "family": self.family.model_dump(mode="json"),
            "n_samples": chosen.n_samples,
            "seed": self.params.seed,
        }


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


def judge_cell(cell: Cell, samplers: Sequence[Sampler]) -> Results:
    """Everything that claims to sample the cell's posteriors, each kept on disk as soon as it is judged."""
    parts = [_judge_reference(cell, name, wrong) for name, wrong in {"exact": {}, **DECOYS}.items()]
    return Results.joined([*parts, *(_judge_sampler(cell, sampler) for sampler in samplers)])


def _judge_reference(cell: Cell, name: str, wrong: dict[str, float]) -> Results:
    head = {"judgement": "sampler", **cell.head, "method": name, "settings": wrong, "nfe": 0}
    draw = exact_sampler(cell.prior, **wrong)
    return kept(cell.facts | head, CODE, lambda: of_verdict(head, cell.oracle.judge(draw)))


def _judge_sampler(cell: Cell, sampler: Sampler) -> Results:
    settings = sampler.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    head = {"judgement": "sampler", **cell.head, "method": kind_of(sampler), "settings": settings}
    facts = cell.facts | head | {"sampler": sampler.model_dump(mode="json")}
    return kept(facts, (*CODE, *code_of(sampler)), lambda: judge_sampler(cell, head, sampler))


def judge_sampler(cell: Cell, head: Head, sampler: Sampler) -> Results:
    """One sampler with the exact denoiser of the cell's prior; those of a Gaussian posterior with the best Gaussian."""
    source = gaussian_prior(cell.prior) if "prior" in sampler.requires else ExactDenoiser(cell.prior)
    draw = Candidate(sampler, source)
    try:
        verdict = cell.oracle.judge(draw)
    except OperatorError as error:
        return Results([unavailable(head | {"nfe": None}, "sliced_wasserstein", str(error))])
    return of_verdict(head | {"nfe": draw.nfe}, verdict)
