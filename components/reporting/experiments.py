"""The paper's experiments, one file each under experiments/: which rows, families, noise, metrics and how many images.

An experiment changes the parameters at hand: with params.yaml it runs at the scale of the default dataset, with a
profile of the paper at the paper's. How each method samples stands in params.methods, once for all experiments.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from components.checks import plain_name, twice
from components.params import UNCONDITIONAL, MetricName, Params, Tuned, params_from, read_values
from components.profiles import merged
from invfusion.degradations import FAMILIES, members_of
from invfusion.errors import ConfigError
from invfusion.metrics import METRICS
from invfusion.names import kind_of, nearest, unknown
from invfusion.schema import Config
from invfusion.training.recipes import RECIPES

FOLDER = Path("experiments")
MAIN_FAMILIES = ("strided_motion_blur", "patch_inpainting", "matrix")
# ImageNet's settings in the paper, for any dataset with classes.
LABEL_DROPOUT, GUIDANCE = 0.1, 2.0


def _known_kind(kind: str) -> str:
    if kind not in (*FAMILIES, UNCONDITIONAL):
        raise ValueError(unknown("degradation family", kind, (*FAMILIES, UNCONDITIONAL)))
    return kind


def _known_model(name: str) -> str:
    if name not in RECIPES:
        raise ValueError(unknown("trained model", name, RECIPES))
    return name


Kind = Annotated[str, AfterValidator(_known_kind)]


class Row(Config):
    """A row that is not simply a method of params.methods: the method it is like, and what differs.

    model: a key of the experiment's `models`, or of train.models; sampler: settings of the sampler, or with a `kind`
    another one; withheld: the model is told nothing of the measurement; paper: its name in paper_tables.csv.
    """

    method: str
    model: str | None = None
    sampler: dict[str, Any] = Field(default_factory=dict)
    withheld: bool | None = None
    paper: str | None = None


class Model(Config):
    """A model that is trained for the experiment: by which recipe, and the parameters that differ."""

    train: Annotated[str, AfterValidator(_known_model)]
    params: dict[str, Any] = Field(default_factory=dict)


class ClaimConfig(Config):
    """An ordering that the paper claims: row `better` has the better `metric` than the rows `than` (default: all).

    on: kinds of families (default: all). than_metric: the others' metric, where it is another. within: the two differ
    by no more than this, instead of being ordered.
    """

    text: str
    better: str
    than: list[str] = Field(default_factory=list)
    metric: MetricName
    than_metric: MetricName | None = None
    on: list[Kind] = Field(default_factory=list)
    within: float | None = Field(default=None, ge=0)


class Experiment(Config):
    """One table or figure of the paper.

    name: its file's. shows: what is made of the results. table, dataset: its number, and its data there
    (paper_tables.csv).
    groups: {group of rows: names of rows}, in the paper's order; a name that `rows` does not explain is a method's.
    families: the columns, "unconditional" for images generated from nothing. params: changes to the parameters.
    class_conditional: as on ImageNet, with labels and guidance.
    """

    name: str = ""
    title: str
    table: str
    dataset: str
    shows: Literal["table", "gallery", "components", "samples", "curve"] = "table"
    n_images: int = Field(default=10_000, ge=2)
    families: list[Kind] = Field(default=list(MAIN_FAMILIES), min_length=1)
    metrics: list[MetricName] = Field(min_length=1)
    groups: dict[str, list[str]]
    rows: dict[str, Row] = Field(default_factory=dict)
    models: dict[str, Model] = Field(default_factory=dict)
    class_conditional: bool = False
    params: dict[str, Any] = Field(default_factory=dict)
    claims: list[ClaimConfig] = Field(default_factory=list)

    @model_validator(mode="after")
    def _rows_are_known(self) -> Self:
        for name in self.names:
            plain_name(name)
        for problem in (*twice("groups", self.names), *twice("families", self.families)):
            raise ValueError(problem)
        for key, names in (("rows", self.rows), ("claims", [n for c in self.claims for n in (c.better, *c.than)])):
            for name in names:
                if name not in self.names:
                    raise ValueError(f"{key}: the experiment has no row '{name}'{nearest(name, self.names)}")
        for name, row in self.rows.items():
            if row.model not in (None, *self.models, *RECIPES):
                raise ValueError(f"rows.{name}: {unknown('model', row.model, [*self.models, *RECIPES])}")
        return self

    @property
    def names(self) -> list[str]:
        """All rows in order."""
        return [name for names in self.groups.values() for name in names]

    @property
    def judges_draws(self) -> bool:
        """Whether a metric needs repeated draws of an image, which other tables do without."""
        return any(METRICS[metric].judges_draws for metric in self.metrics)

    def row(self, name: str) -> Row:
        """What a row is."""
        return self.rows.get(name, Row(method=name))

    def applied(self, params: Params, n_classes: int = 0) -> Params:
        """The parameters of this experiment; n_classes: of the dataset.

        Raises:
            ConfigError: the parameters cannot be changed so.
        """
        values = params.model_dump(mode="json", by_alias=True)
        n_images = min(self.n_images, params.tables.max_images)
        changes: dict[str, Any] = {
            "evaluate": {
                "n_images": n_images,
                "n_unconditional": n_images if UNCONDITIONAL in self.families else 0,
                "families": [_family(params, kind) for kind in self.families if kind != UNCONDITIONAL]
                or values["evaluate"]["families"],
                "methods": self.names,
                "calibration_images": params.evaluate.calibration_images if self.judges_draws else 0,
            },
            # Its own metrics first; what cannot be computed here leaves the choice to the next.
            "tune": {"metrics": list(dict.fromkeys([*self.metrics, *params.tune.metrics]))},
        }
        if self.class_conditional:
            if n_classes == 0:
                raise ConfigError(
                    f"table {self.table} ({self.dataset}) is class-conditional, but the dataset '{params.data.name}' "
                    "has no class labels: choose one that has, as folders named by class"
                )
            changes |= {"model": {"n_classes": n_classes}, "train": {"label_dropout": LABEL_DROPOUT}}
            changes["evaluate"]["guidance"] = GUIDANCE
        values = merged(merged(values, changes), self.params)
        tuned = self._tuned(params)
        values["methods"] = {name: self._method(params, name, tuned.get(name, {})) for name in self.names}
        own = f", with tables.tuned.{self.name}" if tuned else ""
        return params_from(values, f"experiment '{self.title}'{own}")

    def changed_for(self, model: str, params: Params) -> Params:
        """The parameters with which one of its models is trained; params: as `applied` makes them."""
        spec = self.models.get(model)
        if spec is None or not spec.params:
            return params
        changed = merged(params.model_dump(mode="json", by_alias=True), spec.params)
        return params_from(changed, f"the model '{model}' of experiment '{self.title}'")

    def _tuned(self, params: Params) -> dict[str, Tuned]:
        """Of this experiment's rows; an unknown experiment is refused whichever is made."""
        known = experiment_names()
        for experiment in params.tables.tuned:
            if experiment not in known:
                raise ConfigError(f"tables.tuned: {unknown('experiment', experiment, known)}")
        tuned = params.tables.tuned.get(self.name, {})
        for row in tuned:
            # A method that was taken out of the experiment may keep its values.
            if row not in (*self.names, *params.methods):
                raise ConfigError(f"tables.tuned.{self.name}: {unknown('row', row, self.names)}")
        return tuned

    def _method(self, params: Params, name: str, tuned: Tuned) -> dict[str, Any]:
        row = self.row(name)
        if row.method not in params.methods:
            raise ConfigError(
                f"experiment '{self.title}': params.methods has no '{row.method}'{nearest(row.method, params.methods)}"
            )
        method = params.methods[row.method].model_dump(mode="json")
        if row.model is not None:
            method["model"] = row.model
        if row.withheld is not None:
            method["withheld"] = row.withheld
        usual = params.methods[row.method]
        if (method["model"], method["withheld"]) != (usual.model, usual.withheld) or "kind" in row.sampler:
            # Step sizes are one network's, and one sampler's.
            method["tuned"] = {}
        if row.sampler:
            own = {} if "kind" in row.sampler else method["sampler"] or {}
            method |= {"sampler": {**own, **row.sampler}, "extra_draws": 0}
        method["tuned"] = _before(tuned, method["tuned"])
        return method


def _before(own: Tuned, others: Tuned) -> Tuned:
    """A table's own step sizes; others hold on the kinds of families of which it has none, by whatever metric."""
    kinds = {kind for families in own.values() for kind in families}
    left = {metric: {k: v for k, v in families.items() if k not in kinds} for metric, families in others.items()}
    return {metric: left.get(metric, {}) | own.get(metric, {}) for metric in {**own, **left}}


def _family(params: Params, kind: str) -> dict[str, Any]:
    """The settings of a family as the evaluation has them, else as training has them, else its own."""
    known = [*params.evaluate.families, *members_of(params.degradation)]
    family = next((f for f in known if kind_of(f) == kind), None) or FAMILIES[kind]()
    return family.model_dump(mode="json")


def experiment_names() -> list[str]:
    """All experiments: table_01, ..., figure_03, ..."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_experiment(name: str) -> Experiment:
    """The experiment of a name such as table_03.

    Raises:
        ConfigError: there is none of that name, or its file is wrong.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("experiment", name, experiment_names()))
    try:
        return Experiment.model_validate({**read_values(path), "name": name})
    except ValidationError as error:
        problems = "\n".join(f"  {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise ConfigError(f"{path}: {error.error_count()} wrong value(s)\n{problems}") from None
