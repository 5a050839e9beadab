"""Tune the step sizes of the zero-shot methods, family by family, on the validation split.

`python -m components.evaluation.tune DPS DAPS` tries, on each family of params.evaluate.families, every value that a
sampler declares in `tunable`, one setting at a time with the others as they are, and takes the best by
params.tune.metric.
It writes reports/tuned.yaml, whose `tuned:` sections are to be put under the methods in params.yaml, and
reports/tuning.json with all values tried.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from components import cli
from components.evaluation.evaluate import Evaluation, prepare
from components.evaluation.judging import OF_DRAWS, Case
from components.evaluation.methods import Column, columns
from components.params import UNCONDITIONAL, Params
from components.paths import MODELS
from invfusion.errors import ConfigError
from invfusion.metrics import METRICS, Metric

log = logging.getLogger(__name__)

FRAGMENT = Path("reports/tuned.yaml")
TRIALS = Path("reports/tuning.json")
OUTPUT = Path("artifacts/tuning")


@dataclass(frozen=True)
class Trial:
    """One value of one setting, and the metric that came of it (None: it could not be computed)."""

    method: str
    family: str
    setting: str
    value: float
    metric: float | None
    n_diverged: int


def tune(params: Params, names: Sequence[str] = ()) -> Path:
    """Try the values of the named methods (default: all that can be tuned); returns the path of the fragment.

    Raises:
        ConfigError: a name is no method that can be tuned, or tune.metric is no metric.
        CheckpointError: a method's model is not trained.
    """
    chosen, metric = _tunable(params, names), METRICS[params.tune.metric]
    own = {"split": "val", "n_images": params.tune.n_images, "n_unconditional": 0, "bootstrap_resamples": 10}
    settings = params.evaluate.model_copy(update=own | {"methods": chosen})
    params = params.model_copy(update={"evaluate": settings})
    models = {m: MODELS / m for name in chosen if (m := params.methods[name].model)}
    plan = columns(params, models)
    evaluation = prepare(params, plan, models, OUTPUT)
    families = [column for column in plan if column.kind != UNCONDITIONAL]
    trials = [trial for column in families for trial in _trials(evaluation, column, metric)]
    evaluation.restorer.memo.forget_unused("tune")
    return write(trials, params.tune.metric)


def _tunable(params: Params, names: Sequence[str]) -> list[str]:
    able = [name for name, method in params.methods.items() if method.sampler is not None and method.sampler.tunable]
    wrong = [name for name in names if name not in able]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)} cannot be tuned; the methods that can be are {', '.join(able)}")
    return list(names) or able


def _trials(evaluation: Evaluation, column: Column, metric: Metric) -> Iterator[Trial]:
    measured = evaluation.measured(column)
    for method in column.methods:
        assert method.sampler is not None, "only those that can be tuned"
        draws = method.extra_draws if OF_DRAWS & metric.needs else 0
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


def write(trials: Sequence[Trial], metric: str) -> Path:
    """The fragment for params.yaml, and all trials."""
    FRAGMENT.parent.mkdir(parents=True, exist_ok=True)
    fragment: dict[str, Any] = {
        "methods": {method: {"tuned": families} for method, families in best(trials, metric).items()}
    }
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    with FRAGMENT.open("w") as file:
        file.write(
            f"# The best values by {metric} on the validation split, which may not be so by another metric; put "
            "them under the methods in params.yaml.\n"
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
    command.add_argument("methods", nargs="*", help="names of params.methods; default: all that can be tuned")
    with cli.started(command) as options:
        tune(options.params, options.methods)


if __name__ == "__main__":
    main()
