"""The typed image of `params.yaml`: read once, validated whole, then each object receives its own section.

YAML is read as version 1.2, so that `5e-5` is a number. A wrong file gives one `ConfigError` that names every wrong key
and the nearest valid one.
"""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from components.checks import (
    device_name,
    name_problems,
    noise_problem,
    pipeline_problems,
    plain_name,
    prior_problems,
    registered_name,
    twice,
    unknown_kinds,
)
from invfusion.degradations import AnyFamily, DegradationFamily
from invfusion.diffusion.losses import DiffusionLoss
from invfusion.errors import ConfigError
from invfusion.gaussian.prior import FLOOR, Form
from invfusion.metrics import METRICS
from invfusion.models.config import DenoiserConfig, PreconditioningName
from invfusion.models.presets import PRESETS, denoiser_config
from invfusion.names import nearest, unknown
from invfusion.noise import AnyNoise, GaussianNoise, Levels
from invfusion.plugins import load_plugins
from invfusion.samplers import DEIS, AnySampler, DPMpp2M, Heun
from invfusion.schema import Config
from invfusion.training.config import OptimisationConfig, TrainConfig
from invfusion.training.recipes import RECIPES, Recipe
from invfusion.training.task import Task

# The measurement set that measures nothing, from which images are generated.
UNCONDITIONAL = "unconditional"


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(unknown("metric", name, METRICS))
    return name


# A name of `invfusion.metrics.METRICS`.
MetricName = Annotated[str, AfterValidator(_known_metric)]
# {metric that found them: {kind of family: {setting: value}}}.
Tuned = dict[MetricName, dict[str, dict[str, float]]]
# What draws from the posterior through the probability-flow ODE.
OdeSampler = Annotated[Heun | DPMpp2M | DEIS, Field(discriminator="kind")]
# What may name files, metrics and experiments.
PlainName = Annotated[str, AfterValidator(plain_name)]


class PriorFitConfig(Config):
    """How `GaussianPrior.fit` describes the training images, of which it is given the first `max_images`."""

    form: Form = "coloured"
    rank: int | None = Field(default=None, ge=1)
    clusters: int = Field(default=1, ge=1)
    own_covariances: bool = False
    floor: float = Field(default=FLOOR, gt=0)
    max_images: int = Field(default=10_000, ge=2)


class DataConfig(Config):
    """Which dataset: its name, the folder of its shards, the image shape they must hold, and how many samples may be
    left out because they are missing or damaged. gaussian_prior: fitted to its training images; None for none."""

    name: PlainName
    shards: Path
    image_size: int = Field(ge=8, le=1024)
    channels: Literal[3] = 3
    max_skipped: int = Field(default=0, ge=0)
    gaussian_prior: PriorFitConfig | None = None


class ModelConfig(Config):
    """Which architecture: a preset, and which of its levels carry InvFusion blocks (the paper's Table 8).

    preconditioning: what surrounds the networks whose recipe does not say: the paper's, "edm", or "gaussian".
    """

    preset: str
    invfusion_levels: Literal["all"] | list[int] = "all"
    n_classes: int = Field(default=0, ge=0)
    preconditioning: PreconditioningName = "edm"

    @model_validator(mode="after")
    def _known_preset(self) -> Self:
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset '{self.preset}'{nearest(self.preset, PRESETS)}")
        return self


class MethodConfig(Config):
    """One way to restore: a trained model, and the sampler that reads it out.

    model: a folder of artifacts/models. sampler: `evaluate.sampler` where there is a model and none is named; without
    either, the method is H_pinv(y) itself. restores: the kinds of families that it is for. generates: whether it also
    generates images from nothing (Table 4). extra_draws: further samples of the images that are shown. withheld: the
    model is told nothing of the measurement, so that a conditional one serves a zero-shot method.
    tuned: {metric: {kind of family: {setting: value}}}, found by that metric on the validation split, in place of the
    sampler's own.
    """

    model: str | None = None
    sampler: AnySampler | None = None
    restores: Literal["all"] | list[str] = "all"
    generates: bool = False
    extra_draws: int = Field(default=0, ge=0)
    withheld: bool = False
    tuned: Tuned = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.sampler is not None and self.sampler.uses_denoiser and self.model is None:
            raise ValueError(f"the sampler '{self.sampler.kind}' reads out a model: name it under 'model'")
        if self.withheld and self.model is None:
            raise ValueError("withheld: without a model there is nothing to withhold the measurement from")
        kinds = [] if self.restores == "all" else self.restores
        _refuse([*unknown_kinds("restores", kinds), *twice("restores", kinds)])
        for metric, families in self.tuned.items():
            _refuse(unknown_kinds(f"tuned.{metric}", families))
            for kind, values in families.items():
                self._check_tuned(f"tuned.{metric}.{kind}", values)
        return self

    def _check_tuned(self, key: str, values: Mapping[str, float]) -> None:
        tunable = () if self.sampler is None else self.sampler.tunable
        for name in values:
            if name not in tunable:
                raise ValueError(f"{key}: '{name}' is no setting that can be tuned{nearest(name, tunable)}")
        if self.sampler is not None:
            type(self.sampler).model_validate({**self.sampler.model_dump(), **values})

    def tuned_by(self, kind: str, metrics: Sequence[str]) -> MetricName | None:
        """The metric whose values hold on a kind of family: the first of `metrics` that found any, else any that did.

        None where nothing was tuned on that kind.
        """
        return next((m for m in (*metrics, *self.tuned) if kind in self.tuned.get(m, {})), None)


class EvaluateConfig(Config):
    """The frozen measurement sets, and how the models are judged on them.

    methods: names of `methods`, in order. precision: of the networks' weights and arithmetic in sampling.
    """

    split: Literal["train", "val", "test"] = "test"
    n_images: int = Field(default=10_000, ge=2)
    n_unconditional: int = Field(default=10_000, ge=0)
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    noise: AnyNoise = GaussianNoise()
    families: list[AnyFamily] = Field(min_length=1)
    methods: list[str] = Field(min_length=1)
    sampler: OdeSampler = Heun()
    guidance: float = Field(default=1.0, ge=0)
    bootstrap_resamples: int = Field(default=1000, ge=10)
    calibration_images: int = Field(default=500, ge=0)
    calibration_draws: int = Field(default=8, ge=2)
    weights_dir: Path = Path("weights")


class TablesConfig(Config):
    """The paper's tables, of which experiments/ holds one file each.

    max_images: of each, where it has more. tuned: {experiment: {row: as MethodConfig.tuned}}, step sizes found on that
    experiment's own models and measurements, before those of its methods.
    """

    max_images: int = Field(default=10_000, ge=2)
    tuned: dict[str, dict[str, Tuned]] = Field(default_factory=dict)


class TuneConfig(Config):
    """How step sizes are tuned: on so many images of the validation split, by the first of these metrics that can be
    computed. Of values that were found by several, the evaluation takes those of the first likewise."""

    n_images: int = Field(default=128, ge=2)
    metrics: list[MetricName] = Field(default=["psnr"], min_length=1)


class ReportConfig(Config):
    """What the report shows."""

    gallery_images: int = Field(default=6, ge=1)


class GatesConfig(Config):
    """What a challenger must fulfil to become champion."""

    max_consistency_mse: float
    min_psnr_gain_over_palette: float
    min_psnr_gain_over_champion: float
    max_std_ratio: float = Field(default=2.0, ge=1)
    max_calibration_gap: float = Field(default=0.2, ge=0, le=1)


class RegisterConfig(Config):
    """The registered model and the gates of its promotion. model: the trained diffusion model that it is."""

    name: Annotated[str, AfterValidator(registered_name)]
    model: str = "invfusion"
    gates: GatesConfig


class PriorConfig(Config):
    """A prior with known posteriors, fitted to the training images, which are averaged down to its size.

    n_components: 1 for a Gaussian; rank: of the covariances; floor: the least variance of any direction.
    """

    name: PlainName
    image_size: int = Field(ge=4)
    channels: Literal[1, 3] = 1
    n_components: int = Field(ge=1)
    rank: int = Field(ge=1)
    floor: float = Field(default=1e-3, gt=0)


class OracleTrainingConfig(OptimisationConfig):
    """Small models trained on draws of the first prior, and how they are judged.

    widths: of the InvFusion models, the other models have the last one; depth: layers of their one level;
    checkpoints: image counts at which the excess risk is measured; distill_images: for the one-step estimators.
    clusters: of InvFusion-G's prior, each with a covariance of its own, found among the first `cluster_images` of the
    training draws; 1 for none.
    """

    widths: list[Annotated[int, Field(ge=24, multiple_of=24)]] = Field(min_length=1)
    depth: int = Field(default=2, ge=1)
    sigma_y: Levels
    loss: DiffusionLoss = DiffusionLoss()
    checkpoints: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    distill_images: int = Field(ge=1)
    clusters: int = Field(default=1, ge=1)
    cluster_images: int = Field(default=60_000, ge=2)
    n_components: int = Field(default=3, ge=1)
    n_test: int = Field(default=256, ge=2)
    n_steps: int = Field(default=18, ge=1)


class OracleConfig(Config):
    """Samplers and models judged on priors whose posteriors are known.

    samplers: settings to run; every registered sampler that is not listed runs with its own defaults.
    """

    priors: list[PriorConfig] = Field(min_length=1)
    families: list[AnyFamily] = Field(min_length=1)
    sigma_y: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    n_measurements: int = Field(default=6, ge=2)
    n_samples: int = Field(default=512, ge=8)
    samplers: list[AnySampler] = Field(default=[])
    training: OracleTrainingConfig


class RuntimeConfig(Config):
    """Operational knobs, which change no result but for rounding: no stage depends on them.

    device: auto, cpu or cuda; "auto" is CUDA where there is one. CUDA_VISIBLE_DEVICES chooses among GPUs.
    processes: that share training's batches and evaluation's, each with a GPU of its own. "auto" is one on a GPU; on a
    CPU as many as find a core and a micro-batch, since small networks gain more from processes than from threads.
    workers: processes that read images ahead; draw_threads: threads that draw operators ahead, 0 for none. compile: run
    networks through torch.compile, on a GPU layer by layer; "auto" does where a run is long enough to earn back the
    time that compilation takes. activation_budget: GiB that a process's micro-batch may keep for the backward pass;
    layers beyond it are computed again, the finest first, for up to a third more arithmetic. "auto": on a GPU what is
    free there, on a CPU all.
    """

    device: Annotated[str, AfterValidator(device_name)] = "auto"
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    workers: int = Field(default=0, ge=0)
    draw_threads: int = Field(default=1, ge=0)
    attention_backend: Literal["auto", "natten", "flex", "sdpa"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    activation_budget: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    mlflow_uri: str = "sqlite:///mlflow.db"

    @property
    def n_devices(self) -> int:
        """The GPUs that a job needs."""
        return 1 if self.processes == "auto" else self.processes


if TYPE_CHECKING:
    Recipes: TypeAlias = Config
else:
    # Each recipe's own settings, under its name.
    Recipes = create_model("Recipes", __base__=Config, **{name: (recipe, recipe()) for name, recipe in RECIPES.items()})


class Params(Config):
    """One experiment: every scientific value of the pipeline.

    plugins: modules of the user's own that register kinds named below.
    """

    seed: int = Field(ge=0)
    plugins: list[str] = Field(default=[])
    data: DataConfig
    degradation: AnyFamily
    noise: AnyNoise = GaussianNoise()
    model: ModelConfig
    train: TrainConfig
    recipes: Recipes = Recipes()
    methods: dict[str, MethodConfig]
    evaluate: EvaluateConfig
    tables: TablesConfig = TablesConfig()
    tune: TuneConfig = TuneConfig()
    report: ReportConfig
    register_: RegisterConfig = Field(alias="register")
    oracle: OracleConfig
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        _refuse(name_problems(self, reserved=UNCONDITIONAL))
        _refuse(prior_problems(self))
        image_shape = self.denoiser_config().image_shape
        trained: dict[str, tuple[AnyNoise, list[DegradationFamily]]] = {}
        for name in RECIPES:
            family, (key, noise) = self.task(name).degradation, self._noise_of(name)
            if family is not None:
                family.check(image_shape)
                trained.setdefault(key, (noise, []))[1].append(family)
            elif self.recipe(name).noise is not None:
                raise ValueError(f"{key}: '{name}' is trained on no measurements; leave the noise out")
        for family in self.evaluate.families:
            family.check(image_shape)
        for key, (noise, families) in trained.items():
            _refuse(noise_problem(noise, key, families))
        _refuse(noise_problem(self.evaluate.noise, "evaluate.noise", self.evaluate.families))
        return self

    def architecture(self, name: str) -> DenoiserConfig:
        """Of a model with fresh weights."""
        return self.denoiser_config(**self.recipe(name).architecture)

    @property
    def models(self) -> list[str]:
        """What the pipeline trains."""
        return [*self.train.models, *self.train.distilled]

    def recipe(self, name: str) -> Recipe:
        """The recipe of a model, with its settings. Raises `ConfigError` where there is none."""
        recipe: Recipe = getattr(self.recipes, RECIPES[name].name)
        return recipe

    def task(self, name: str) -> Task:
        """What a model learns."""
        noise = self._noise_of(name)[1]
        return self.recipe(name).task(Task(self.train.loss, self.degradation, noise, self.train, self.seed))

    def _noise_of(self, name: str) -> tuple[str, AnyNoise]:
        """The noise in training: its own, or that of the model it starts from, or that of all; and under which key."""
        recipe, before = self.recipe(name), self.starts_from(name)
        if recipe.noise is not None:
            return f"recipes.{recipe.name}.noise", recipe.noise
        return ("noise", self.noise) if before is None else self._noise_of(before)

    def starts_from(self, name: str) -> str | None:
        """The model whose weights the training of another starts from; None: from fresh ones."""
        return self.train.distilled.get(name, self.recipe(name).starts_from)

    def first_of(self, name: str) -> str:
        """The model with fresh weights from which a model's trainings go on, in the end; itself where it is one."""
        start = self.starts_from(name)
        return name if start is None else self.first_of(start)

    def denoiser_config(self, **overrides: Any) -> DenoiserConfig:
        """The architecture, with some of its fields changed.

        Raises:
            ConfigError: the preset cannot take the image size.
        """
        levels = self.model.invfusion_levels
        config = denoiser_config(
            self.model.preset,
            image_size=self.data.image_size,
            channels=self.data.channels,
            invfusion_levels=levels if levels == "all" else tuple(levels),
            n_classes=self.model.n_classes,
            **{"preconditioning": self.model.preconditioning, **overrides},
        )
        everywhere = config.model_copy(update={"invfusion_levels": "all"})
        indices = range(len(config.levels))
        # One architecture has one name, so that a model of it is found again.
        is_same = all(config.has_invfusion_blocks(i) == everywhere.has_invfusion_blocks(i) for i in indices)
        return everywhere if is_same else config


def _refuse(problems: Iterable[str]) -> None:
    if found := list(problems):
        raise ValueError("\n".join(found))


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and validate one experiment.

    Raises:
        ConfigError: the file is missing, is not YAML, or any key or value is wrong; the message lists all of them.
    """
    return pipeline_from(read_values(path), str(path))


def pipeline_from(values: Mapping[str, Any], source: str) -> Params:
    """`params_from` for the pipeline itself, which trains the models of its methods and registers one of them."""
    params = params_from(values, source)
    if problems := pipeline_problems(params):
        raise _wrong(source, problems)
    return params


def read_values(path: Path | str) -> dict[str, Any]:
    """The content of a YAML file of sections. Raises `ConfigError` where it is missing or not YAML."""
    path = Path(path)
    try:
        values = YAML(typ="safe", pure=True).load(read_text(path))
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid parameters: its values are nested too deeply") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as 'data:' and 'train:', found {type(values).__name__}")
    return values


def read_text(path: Path) -> str:
    """The text of a file. Raises `ConfigError` where it is missing, or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the project's root, or name a params file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#x} at {error.start}); save it as UTF-8, in an "
            "editor or by `iconv -t utf-8`"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def params_from(values: Mapping[str, Any], source: str) -> Params:
    """Validate the values of one experiment; `source` is named where they are wrong."""
    plugins = values.get("plugins")
    load_plugins(plugins if isinstance(plugins, list) else [])
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise _wrong(source, [line for problem in error.errors() for line in _explain(problem).splitlines()]) from None


def _wrong(source: str, problems: Sequence[str]) -> ConfigError:
    return ConfigError("\n  ".join([f"{source}: {len(problems)} wrong parameter(s)", *problems]))


def _explain(problem: Any) -> str:
    """One line for one pydantic error: the dotted key, what is wrong, and the nearest valid key for a typo."""
    location = problem["loc"]
    key = _without_tags(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(str(location[-1]), _keys_at(Params, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "union_tag_invalid":
        expected = [tag.strip(" '") for tag in problem["ctx"]["expected_tags"].split(",")]
        return f"{key}.kind: unknown kind '{problem['ctx']['tag']}'{nearest(problem['ctx']['tag'], expected)}"
    if problem["type"] == "value_error":
        return f"{key}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    return f"{key}: {problem['msg']} (got {problem['input']!r})"


def _without_tags(location: tuple[int | str, ...]) -> str:
    """The key as the user wrote it: pydantic's locations contain the tag of a union member, the file does not."""
    shown: list[str] = []
    current: Any = Params
    for part in location:
        tagged = _union_member(current, part)
        if tagged is not None:
            current = tagged
            continue
        shown.append(str(part))
        current = _child(current, part)
    return ".".join(shown)


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the section at a location of pydantic's error."""
    current: Any = model
    for part in location:
        current = _union_member(current, part) or _child(current, part)
    return [field.alias or name for name, field in current.model_fields.items()] if _is_model(current) else []


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _plain(annotation: Any) -> Any:
    """Strip `Annotated` wrappers."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _union_member(annotation: Any, tag: int | str) -> Any:
    """The member of a tagged union whose kind is `tag`, or None."""
    return next(
        (
            member
            for member in _members(annotation)
            if _is_model(member) and "kind" in member.model_fields and member.model_fields["kind"].default == tag
        ),
        None,
    )


def _members(annotation: Any) -> list[Any]:
    """The members of a union, those of unions within it too; none where it is no union."""
    annotation = _plain(annotation)
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return []
    return [member for part in typing.get_args(annotation) for member in _members(part) or [_plain(part)]]


def _child(annotation: Any, part: int | str) -> Any:
    """The annotation of a field of a model, or of an element of a list."""
    annotation = _plain(annotation)
    if _is_model(annotation):
        by_key = {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}
        return by_key.get(str(part))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((_child(m, part) for m in typing.get_args(annotation) if _child(m, part) is not None), None)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments else None
