"""The methods of an evaluation: what params.methods describes, on one kind of measurements."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from components.params import UNCONDITIONAL, MethodConfig, Params
from invfusion.degradations import DegradationFamily
from invfusion.names import kind_of
from invfusion.samplers import Sampler


@dataclass(frozen=True)
class Method:
    """A trained model and the sampler that reads it out; neither for H_pinv(y) itself.

    extra_draws: further samples of the images that are shown, and of those on which calibration is judged. tuned_by:
    the metric that found its step sizes on the validation split; None where they are the sampler's own. withheld:
    whether the model is told nothing of the measurement.
    """

    name: str
    model: str | None = None
    sampler: Sampler | None = None
    extra_draws: int = 0
    tuned_by: str | None = None
    withheld: bool = False

    @property
    def needs_prior(self) -> bool:
        """Whether it restores by the Gaussian prior of the training images, without a model."""
        return self.model is None and self.sampler is not None and "prior" in self.sampler.requires

    @property
    def is_generative(self) -> bool:
        """Whether its images follow a distribution, so that sets of them can be compared (posterior means do not)."""
        return self.sampler is not None and self.sampler.follows != "mean"

    @property
    def claims_posterior(self) -> bool:
        """Whether it draws from the posterior, if only approximately, so that its spread can be judged."""
        return self.sampler is not None and self.sampler.follows in ("posterior", "approximation")

    @property
    def is_point_estimate(self) -> bool:
        """Whether its one image is all that it states, so that its forecast has no spread."""
        return self.sampler is None or self.sampler.follows == "mean"


@dataclass(frozen=True)
class Column:
    """One measurement set and what restores it; without a family nothing is measured, and images are generated."""

    family: DegradationFamily | None
    methods: tuple[Method, ...] = field(default=())

    @property
    def kind(self) -> str:
        return UNCONDITIONAL if self.family is None else kind_of(self.family)


def columns(params: Params, models: Collection[str]) -> list[Column]:
    """The families of params.evaluate in turn, then generation, each with its methods whose models are at hand."""
    families: list[DegradationFamily | None] = [*params.evaluate.families]
    if params.evaluate.n_unconditional >= 2:
        families.append(None)
    found = [Column(family, tuple(_methods(params, models, Column(family).kind))) for family in families]
    return [column for column in found if column.methods]


def _methods(params: Params, models: Collection[str], kind: str) -> Iterable[Method]:
    for name in params.evaluate.methods:
        config = params.methods[name]
        if restores(config, kind) and (config.model is None or config.model in models):
            by = config.tuned_by(kind, params.tune.metrics)
            sampler = sampler_on(config, kind, params.evaluate.sampler, by)
            method = Method(name, config.model, sampler, config.extra_draws, by, config.withheld)
            yield replace(method, extra_draws=_extra_draws(params, method, kind))


def restores(config: MethodConfig, kind: str) -> bool:
    """Whether a method restores the measurements of this kind of family."""
    if kind == UNCONDITIONAL:
        return config.generates
    return config.restores == "all" or kind in config.restores


def sampler_on(config: MethodConfig, kind: str, default: Sampler, tuned_by: str | None) -> Sampler | None:
    """A method's sampler on this kind of family; `default` reads out a model for which none is named."""
    if config.sampler is None:
        return default if config.model is not None else None
    tuned = {} if tuned_by is None else config.tuned[tuned_by][kind]
    return type(config.sampler).model_validate(config.sampler.model_dump() | tuned)


def _extra_draws(params: Params, method: Method, kind: str) -> int:
    """What the galleries show and calibration needs."""
    if kind == UNCONDITIONAL:
        return 0
    judged = method.claims_posterior and params.evaluate.calibration_images > 0
    return max(method.extra_draws, params.evaluate.calibration_draws - 1 if judged else 0)
