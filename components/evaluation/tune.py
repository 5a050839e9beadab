"""Tune the step sizes of the zero-shot methods, family by family, on the validation split.

`python -m components.evaluation.tune DPS DAPS` tries, on each family of params.evaluate.families, every value that a
sampler declares in `tunable`, one setting at a time with the others as they are, and takes the best by the first of
params.tune.metrics that can be computed. With `--table table_09` models, rows, families, noise and metrics are those of
that experiment, so that a table's step sizes are tuned on what it shows and by what it reports.
It writes reports/tuned.yaml, whose `tuned:` sections are to be put into params.yaml, under the methods or for the table
alone, and reports/tuning.json with all values tried.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components import cli
from components.evaluation.evaluate import Evaluation, prepare
from components.evaluation.judging import Case
from components.evaluation.methods import Column, columns
from components.params import UNCONDITIONAL, Params
from components.paths import MODELS
from components.training.zoo import Zoo
from invfusion.errors import CheckpointError, ConfigError
from invfusion.metrics import METRICS, Metric

log = logging.getLogger(__name__)

FRAGMENT = Path("reports/tuned.yaml")
TRIALS = Path("reports/tuning.json")
OUTPUT = Path("artifacts/tuning")
EVERYWHERE = "A table takes those of the first of its metrics that has any."
THERE = "They hold for this table alone, before those of the methods."


@dataclass(frozen=True)
class Trial:
    """One value of one setting, and the metric that came of it (None: it could not be computed)."""

    method: str
    family: str
    setting: str
    value: float
    metric: float | None
    n_diverged: int


def tune(params: Params, names: Sequence[str] = (), table: str = "") -> Path:
    """Try the values of the named methods (default: all that can be tuned); returns the path of the fragment.

    table: the experiment whose rows they are; its models are those at hand.

    Raises:
        ConfigError: a name is no method, or row of the table, that can be tuned, or none of tune.metrics can be
            computed.
        DataError: the dataset has not been staged.
        CheckpointError: a method's model is not trained.
    """
    zoo = Zoo.of(params, table, "val") if table else None
    params = params if zoo is None else zoo.params
    chosen = _tunable(params, names)
    own = {"split": "val", "n_images": params.tune.n_images, "n_unconditional": 0, "bootstrap_resamples": 10}
    settings = params.evaluate.model_copy(update=own | {"methods": chosen})
    params = params.model_copy(update={"evaluate": settings})
    needed = list(dict.fromkeys(model for name in chosen if (model := params.methods[name].model)))
    models = {model: MODELS / model for model in needed} if zoo is None else _models(zoo, needed)
    plan = columns(params, models)
    evaluation = prepare(params, plan, models, OUTPUT)
    metric = choose_metric(params, evaluation.judge.missing)
    families = [column for column in plan if column.kind != UNCONDITIONAL]
    trials = [trial for column in families for trial in _trials(evaluation, column, metric)]
    evaluation.restorer.memo.forget_unused("tune")
    return write(trials, metric.name, table)


def choose_metric(params: Params, missing: Mapping[str, str]) -> Metric:
    """The first of tune.metrics that can be computed; missing: why others cannot.

    Raises:
        ConfigError: there is none.
    """
    noisy = not params.evaluate.noise.is_absent
    reasons = {
        name: missing.get(name) or "not defined for noisy measurements"
        for name in params.tune.metrics
        if name in missing or (noisy and "projected" in METRICS[name].needs)
    }
    for name, reason in reasons.items():
        log.info("not tuned by %s: %s", METRICS[name].label, reason)
    for name in params.tune.metrics:
        if name not in reasons:
            return METRICS[name]
    raise ConfigError(f"none of tune.metrics can be computed: {'; '.join(f'{n}: {r}' for n, r in reasons.items())}")


def _models(zoo: Zoo, needed: Collection[str]) -> dict[str, Path]:
    """Of an experiment, as they are at hand."""
    found, missing = zoo.provide()
    for model in needed:
        if model in missing:
            raise CheckpointError(
                f"{missing[model]}. `python -m flows.table --name {zoo.name}` trains what can be trained"
            )
    return {model: found[model] for model in needed}


def _tunable(params: Params, names: Sequence[str]) -> list[str]:
    able = [name for name, method in params.methods.items() if method.sampler is not None and method.sampler.tunable]
    if not able:
        raise ConfigError("none of the methods has a step size to tune")
    wrong = [name for name in names if name not in able]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)} cannot be tuned; the methods that can be are {', '.join(able)}")
    return list(names) or able


def _trials(evaluation: Evaluation, column: Column, metric: Metric) -> Iterator[Trial]:
    measured = evaluation.measured(column)
    for method in column.methods:
        assert method.sampler is not None, "only those that can be tuned"
        draws = method.extra_draws if metric.judges_draws else 0
        for setting, values in method.sampler.tunable.items():
            for value in values:
                trial = replace(method, sampler=method.sampler.model_copy(update={setting: value}), extra_draws=draws)
                case = Case(trial, measured, evaluation.restorer.restore(trial, measured))
                found = (
                    evaluation.judge.record(case, metric).value if metric in evaluation.judge.metrics(case) else None
                )
                yield Trial(method.name, column.kind, setting, value, found, case.cell.n_diverged)
                log.info("%s / %s: %s = %g: %s", column.kind, method.name, setting, value, found)


def best(trials: Sequence[Trial], metric: str) -> dict[str, dict[str, dict[str, float]]]:
    """{method: {family: {setting: value}}}: of each setting the best value, first by how few images diverged."""
    merit = METRICS[metric].merit
    found: dict[str, dict[str, dict[str, float]]] = {}
    for key in dict.fromkeys((t.method, t.family, t.setting) for t in trials):
        tried = [t for t in trials if (t.method, t.family, t.setting) == key and t.metric is not None]
        if tried:
            winner = max(tried, key=lambda t: (-t.n_diverged, merit(t.metric or 0.0)))
            found.setdefault(key[0], {}).setdefault(key[1], {})[key[2]] = winner.value
    return found


def at_the_end(trials: Sequence[Trial], metric: str) -> list[str]:
    """The best values that are the least or the greatest tried, each in words."""
    found = []
    for method, families in best(trials, metric).items():
        for family, settings in families.items():
            for setting, value in settings.items():
                tried = [t.value for t in trials if (t.method, t.family, t.setting) == (method, family, setting)]
                if value in (min(tried), max(tried)):
                    end = "greatest" if value == max(tried) else "least"
                    found.append(f"{family} / {method}: {setting} = {value:g} is the {end} value tried")
    return found


def write(trials: Sequence[Trial], metric: str, table: str = "") -> Path:
    """The fragment for params.yaml, for one table or for all, and all trials."""
    FRAGMENT.parent.mkdir(parents=True, exist_ok=True)
    found = {method: {metric: families} for method, families in best(trials, metric).items()}
    fragment: dict[str, Any] = (
        {"tables": {"tuned": {table: found}}}
        if table
        else {"methods": {method: {"tuned": values} for method, values in found.items()}}
    )
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    with FRAGMENT.open("w") as file:
        file.write(
            f"# The best values by {metric} on the validation split, which may not be so by another metric; put "
            f"them into params.yaml. {THERE if table else EVERYWHERE}\n"
        )
        yaml.dump(fragment, file)
    for ends in at_the_end(trials, metric):
        log.warning("%s; the best may lie beyond it", ends)
    TRIALS.write_text(json.dumps([vars(trial) | {"by": metric} for trial in trials], indent=1) + "\n")
    log.info("the best values are in %s, all that were tried in %s", FRAGMENT, TRIALS)
    return FRAGMENT


def main() -> None:
    """Tune methods of params.yaml on the validation split."""
    command = cli.parser(main.__doc__)
    command.add_argument("methods", nargs="*", help="names of params.methods, or the table's rows; default: all")
    command.add_argument("--table", default="", help="an experiment, such as table_09, instead of the evaluation")
    with cli.started(command) as options:
        tune(options.params, options.methods, options.table)


if __name__ == "__main__":
    main()
