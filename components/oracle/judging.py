"""Judge samplers with an ideal denoiser, on priors whose posteriors are known exactly.

No registry is imported: what is judged here depends on its own code and what it shares, and on no other sampler's.
"""

from collections.abc import Sequence
from functools import cached_property

from components.code import code_of
from components.oracle.records import Candidate, Head, Results, kept, kind_of, of_verdict, unavailable
from components.params import Params
from invfusion.degradations import DegradationFamily
from invfusion.errors import OperatorError
from invfusion.oracle import (
    DECOYS,
    ExactDenoiser,
    GaussianMixture,
    Oracle,
    draw_measurements,
    exact_sampler,
    gaussian_prior,
)
from invfusion.samplers import Sampler


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

    @property
    def code(self) -> set[str]:
        """The code that they depend on, beside a sampler's own."""
        return {__name__} | code_of(self.family)


def judge_cell(cell: Cell, samplers: Sequence[Sampler]) -> Results:
    """Everything that claims to sample the cell's posteriors, each kept on disk as soon as it is judged."""
    parts = [_judge_reference(cell, name, wrong) for name, wrong in {"exact": {}, **DECOYS}.items()]
    return Results.joined([*parts, *(_judge_sampler(cell, sampler) for sampler in samplers)])


def _judge_reference(cell: Cell, name: str, wrong: dict[str, float]) -> Results:
    head = {"judgement": "sampler", **cell.head, "method": name, "settings": wrong, "nfe": 0}
    draw = exact_sampler(cell.prior, **wrong)
    return kept(cell.facts | head, cell.code, lambda: of_verdict(head, cell.oracle.judge(draw)))


def _judge_sampler(cell: Cell, sampler: Sampler) -> Results:
    settings = sampler.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
    head = {"judgement": "sampler", **cell.head, "method": kind_of(sampler), "settings": settings}
    facts = cell.facts | head | {"sampler": sampler.model_dump(mode="json")}
    return kept(facts, cell.code | code_of(sampler), lambda: judge_sampler(cell, head, sampler))


def judge_sampler(cell: Cell, head: Head, sampler: Sampler) -> Results:
    """One sampler with the exact denoiser of the cell's prior; those of a Gaussian posterior with the best Gaussian."""
    source = gaussian_prior(cell.prior) if "prior" in sampler.requires else ExactDenoiser(cell.prior)
    draw = Candidate(sampler, source)
    try:
        verdict = cell.oracle.judge(draw)
    except OperatorError as error:
        return Results([unavailable(head | {"nfe": None}, "sliced_wasserstein", str(error))])
    return of_verdict(head | {"nfe": draw.nfe}, verdict)
