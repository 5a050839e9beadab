"""What of params.yaml is known to be wrong before any work, beyond single values: names, and parts that do not fit.

Each check yields one line for each problem: the dotted key, what is wrong, and the nearest valid name or the remedy.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from components.paths import file_name
from invfusion.degradations import FAMILIES, DegradationFamily
from invfusion.errors import OperatorError
from invfusion.names import kind_of, nearest, unknown
from invfusion.noise import AnyNoise
from invfusion.samplers import Sampler
from invfusion.training.recipes import RECIPES, Distillation

if TYPE_CHECKING:
    from components.params import MethodConfig, Params

# What becomes a file's name, a folder's, and a part of MLflow's names of metrics, which are put together by slashes.
PLAIN = re.compile(r"\w(?:[\w\-.: ]{0,98}\w)?")
# MLflow takes less in the name of a model, whose history takes the name with this behind it.
REGISTERED = re.compile(r"\w(?:[\w\- ]{0,98}\w)?")
HISTORY = "-history"
DEVICES = ("auto", "cpu", "cuda")


def plain_name(name: str) -> str:
    """The name, if it can name files and metrics. Raises `ValueError`."""
    if not PLAIN.fullmatch(name):
        raise ValueError(
            f"{name!a} cannot name files and metrics: take letters, digits, '_-.:' and spaces, none of these at either "
            "end, 100 characters at most"
        )
    return name


def registered_name(name: str) -> str:
    """The name, if MLflow takes it for a registered model and its history. Raises `ValueError`."""
    if not REGISTERED.fullmatch(name):
        raise ValueError(
            f"{name!a} cannot name a registered model: take letters, digits, '_-' and spaces, none of these at either "
            "end, 100 characters at most"
        )
    if name.endswith(HISTORY):
        raise ValueError(f"'{name}' is kept for the history of the model '{name.removesuffix(HISTORY)}'")
    return name


def device_name(name: str) -> str:
    """The name, if computations can run there; whether this machine has it shows later. Raises `ValueError`."""
    if name in DEVICES:
        return name
    if name == "mps":
        raise ValueError("'mps' has no double precision, which operators need; choose cpu or auto")
    if re.fullmatch(r"cuda:\d+", name):
        number = name.partition(":")[2]
        raise ValueError(f"{name!a}: choose cuda, and the GPU by CUDA_VISIBLE_DEVICES={number} in the environment")
    raise ValueError(f"{name!a} is no device; valid are {', '.join(DEVICES)}")


def known_kinds() -> list[str]:
    """The kinds that a family of params.evaluate may have, plug-ins' included."""
    return [*FAMILIES, "mixture"]


def unknown_kinds(key: str, kinds: Iterable[str]) -> Iterator[str]:
    """What is wrong with the kinds of families that somebody names."""
    for kind in kinds:
        if kind not in known_kinds():
            yield f"{key}: {unknown('degradation family', kind, known_kinds())}"


def twice(key: str, names: Iterable[Any], why: str = "") -> Iterator[str]:
    """What a list holds more than once."""
    for name, n in Counter(names).items():
        if n > 1:
            yield f"{key}: '{name}' stands there {n} times{why}"


# Of any experiment.


def name_problems(params: "Params", reserved: str) -> Iterator[str]:
    """Names that are unknown, that stand twice, or that cannot be used; reserved: what no family may be called."""
    yield from _methods(params)
    yield from _models(params)
    for key, families in (("evaluate.families", params.evaluate.families), ("oracle.families", params.oracle.families)):
        yield from _families(key, families, reserved)
    yield from twice("oracle.priors", [prior.name for prior in params.oracle.priors])
    yield from twice("oracle.sigma_y", params.oracle.sigma_y)
    yield from twice("oracle.training.widths", params.oracle.training.widths)
    yield from twice("plugins", params.plugins)


def _methods(params: "Params") -> Iterator[str]:
    files: dict[str, str] = {}
    for name in params.methods:
        try:
            plain_name(name)
        except ValueError as error:
            yield f"methods: {error}"
            continue
        file = file_name(name)
        if not file:
            yield f"methods: '{name}' needs a letter from a to z or a digit, which name its pictures' file"
        elif file in files:
            yield f"methods: '{files[file]}' and '{name}' would write their pictures into one file, {file}: rename one"
        files.setdefault(file, name)
    yield from twice("evaluate.methods", params.evaluate.methods)
    for name in dict.fromkeys(params.evaluate.methods):
        if name not in params.methods:
            yield f"evaluate.methods: unknown method '{name}'{nearest(name, params.methods)}"


def _models(params: "Params") -> Iterator[str]:
    """Each model has a recipe and stands where it belongs, and what it starts from is trained and fit for it."""
    train = params.train
    fresh, others = (
        [n for n, r in RECIPES.items() if (r.starts_from is None) == is_fresh] for is_fresh in (True, False)
    )
    yield from twice("train.models", train.models)
    for name in dict.fromkeys(train.models):
        if name not in fresh:
            where = "; it starts from another model: put it under train.distilled" if name in others else ""
            yield f"train.models: unknown model '{name}'{where or nearest(name, fresh)}"
    for name, start in train.distilled.items():
        recipe = RECIPES.get(name)
        if name not in others or recipe is None:
            where = "; it starts from fresh weights: put it into train.models" if name in fresh else ""
            yield f"train.distilled: unknown model '{name}'{where or nearest(name, others)}"
        elif start not in train.models:
            hint = _meant(start, train.models)
            yield f"train.distilled.{name}: '{start}' is not among train.models {train.models}{hint}"
        elif start in fresh and not (issubclass(recipe, Distillation) and recipe.can_start_from(RECIPES[start])):
            yield f"train.distilled.{name}: '{start}' is no model that {recipe.label} can start from"


def _meant(name: str, valid: Sequence[str]) -> str:
    hint = nearest(name, valid)
    return hint if "did you mean" in hint else ""


def _families(key: str, families: Sequence[DegradationFamily], reserved: str) -> Iterator[str]:
    kinds = [kind_of(family) for family in families]
    yield from twice(key, kinds, "; each kind is one column: list it once")
    for kind in dict.fromkeys(kinds):
        if kind == reserved or not PLAIN.fullmatch(kind):
            yield f"{key}: the kind {kind!a} cannot name a column of the tables: rename it in its plug-in"


def noise_problem(noise: AnyNoise, key: str, families: Sequence[DegradationFamily]) -> Iterator[str]:
    """Noise that is not defined for the measurements of a family."""
    unfit = [family for family in families if noise.needs_nonnegative and not family.is_nonnegative]
    bad = dict.fromkeys(kind_of(family) for family in unfit)
    if bad:
        yield (
            f"{key}: '{noise.kind}' noise is defined for operators without negative entries; "
            f"leave out {', '.join(bad)}, or choose kind: gaussian"
        )


def prior_problems(params: "Params") -> Iterator[str]:
    """A model or method that needs the Gaussian prior where none is fitted."""
    if params.data.gaussian_prior is not None:
        return
    for name in params.train.models:
        if params.architecture(name).preconditioning == "gaussian":
            yield (
                f"train.models: '{name}' needs the images' Gaussian prior; set data.gaussian_prior, as "
                "profiles/base.yaml does, or model.preconditioning to edm"
            )
    for name in params.evaluate.methods:
        method = params.methods[name]
        if method.model is None and method.sampler is not None and "prior" in method.sampler.requires:
            yield f"evaluate.methods: '{name}' needs the images' Gaussian prior; set data.gaussian_prior"


# Of the pipeline itself; an experiment of a table trains models of its own, and registers nothing.


def pipeline_problems(params: "Params") -> list[str]:
    """Methods whose models are not trained or do not suit their samplers, and a model that cannot be registered."""
    found = [problem for name, method in params.methods.items() for problem in _method(params, name, method)]
    return [*found, *_registered(params)]


def _method(params: "Params", name: str, method: "MethodConfig") -> Iterator[str]:
    model = method.model
    if model is None:
        return
    if model not in RECIPES:
        yield f"methods.{name}.model: {unknown('trained model', model, RECIPES)}"
        return
    if name in params.evaluate.methods and model not in params.models:
        yield (
            f"evaluate.methods: '{name}' needs the model '{model}', which is not trained: put '{model}' into "
            f"train.{'models' if RECIPES[model].starts_from is None else 'distilled'}, or take '{name}' out of "
            "evaluate.methods"
        )
    sampler = method.sampler or params.evaluate.sampler
    for is_unfit, reason in _MISMATCHES:
        if is_unfit(params, model, sampler):
            yield f"methods.{name}: {reason(model, sampler)}"
            return
    if method.restores:
        is_told = is_conditional(params, model) and not method.withheld
        try:
            sampler.check_pairing(Model(is_told), _MEASUREMENT)  # type: ignore[arg-type]
        except OperatorError as error:
            yield f"methods.{name}: {error}"


def is_conditional(params: "Params", model: str) -> bool:
    """Whether a network is given the measurement; one that starts from another is given what that one is."""
    return bool(RECIPES[params.first_of(model)].architecture.get("variant") != "unconditional")


@dataclass(frozen=True)
class Model:
    """In place of a network that is not there yet, before a sampler that asks what it is."""

    is_conditional: bool


_MEASUREMENT = SimpleNamespace(y=torch.zeros(1, 1))


def _lacks_components(_: "Params", model: str, sampler: Sampler) -> bool:
    return "components" in sampler.requires and "n_components" not in RECIPES[model].model_fields


def _lacks_prior(params: "Params", model: str, sampler: Sampler) -> bool:
    return "prior" in sampler.requires and params.architecture(params.first_of(model)).preconditioning != "gaussian"


def _reads_out_wrongly(params: "Params", model: str, sampler: Sampler) -> bool:
    recipe = params.recipe(model)
    suited = {recipe.reads_out["kind"], "mmse"} | ({"nppc"} if "n_components" in type(recipe).model_fields else set())
    return not recipe.is_diffusion and sampler.uses_denoiser and kind_of(sampler) not in suited


_MISMATCHES: tuple[tuple[Callable[["Params", str, Sampler], bool], Callable[[str, Sampler], str]], ...] = (
    (_lacks_components, lambda model, s: f"the sampler '{kind_of(s)}' needs principal components, '{model}' has none"),
    (_lacks_prior, lambda model, s: f"the sampler '{kind_of(s)}' needs a Gaussian prior, '{model}' has none"),
    (
        _reads_out_wrongly,
        lambda model, s: (
            f"'{model}' is no diffusion model, so the sampler '{kind_of(s)}' cannot read it out; take "
            f"'{RECIPES[model]().reads_out['kind']}'"
        ),
    ),
)


def _registered(params: "Params") -> Iterator[str]:
    model = params.register_.model
    if model not in RECIPES:
        yield f"register.model: {unknown('trained model', model, RECIPES)}"
        return
    fit = [n for n, r in RECIPES.items() if r.is_diffusion and r.architecture.get("variant") == "invfusion"]
    if model not in fit:
        yield f"register.model: '{model}' is no InvFusion model; choose one of {', '.join(fit)}"
        return
    if model not in params.train.models:
        yield f"register.model: '{model}' is not trained: put it into train.models {params.train.models}"
    evaluated = [params.methods[name] for name in params.evaluate.methods]
    if not any(method.model == model and method.sampler is None for method in evaluated):
        yield f"register.model: none of evaluate.methods samples '{model}' by evaluate.sampler: nothing would judge it"
