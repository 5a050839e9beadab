"""Make one table or figure of the paper: train what is missing, evaluate, and write it in the paper's layout.

`python -m components.reporting.table table_03` reads experiments/table_03.yaml and writes reports/tables/table_03.html,
.md and .json, with pictures beside them. Run again after a kill, it continues; what other tables computed is taken.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from components import cli, tracking
from components.evaluation.evaluate import Evaluation, Results, prepare
from components.evaluation.methods import Column as Measured
from components.evaluation.methods import Method, columns
from components.evaluation.restoring import STATE
from components.evaluation.sharing import helpers, is_helper
from components.memo import Memo
from components.params import UNCONDITIONAL, Params
from components.records import available, by_key
from components.reporting import figures, pictures, tables, verdicts
from components.reporting.experiments import Experiment, Model, experiment_names
from components.reporting.pages import Notes, Page, Picture, Section
from components.reporting.paper import Paper
from components.reporting.tables import Cell, Column, Table, listing
from components.reporting.verdicts import Evidence, Finding
from components.training.zoo import Zoo, imported_from, train_missing
from invfusion.errors import CheckpointError, InvFusionError
from invfusion.metrics import METRICS
from invfusion.metrics.coverage_90 import LEVEL
from invfusion.models import load_manifest
from invfusion.samplers import Sampler

log = logging.getLogger(__name__)

OUTPUT = Path("artifacts/tables")
SETS = Path("measurements")
REPORTS = Path("reports/tables")
BY_GAUSSIAN = ", and the Gaussian of the training images"


@dataclass(frozen=True)
class Outcome:
    """Everything that a table tells of one seed. missing: why rows are not there; imported: {model: file}."""

    name: str
    experiment: Experiment
    params: Params
    plan: Sequence[Measured]
    results: Results
    missing: Mapping[str, str]
    trained_images: Mapping[str, int]
    imported: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The folder of its scores and restorations."""
        return home_of(self.name, self.params)


def home_of(name: str, params: Params) -> Path:
    """Where an evaluation of one seed lies."""
    return OUTPUT / name / f"seed-{params.seed}"


def table(params: Params, name: str, trains: bool = True, seeds: int = 1) -> Path:
    """Make one experiment of experiments/; returns the path of its page. Without `trains`, with the models at hand.

    seeds: how often all of it is made, trainings too: with params.seed and the numbers that follow it.

    Raises:
        DataError: the dataset has not been staged, or a frozen measurement set was changed.
        ConfigError: the experiment cannot be run with these parameters.
        CheckpointError: none of its models is there.
    """
    if is_helper():
        _prepared(params, name)[1].help()
        return REPORTS / f"{name}.html"
    of_seeds = [params.model_copy(update={"seed": params.seed + i}) for i in range(seeds)]
    if trains:
        train_missing([Zoo.of(one, name, one.evaluate.split) for one in of_seeds])
    first = _prepared(params, name)
    with tracking.start_run(first[0].params, "evaluate", name) as run:
        memo, outcomes = Memo(STATE), list[Outcome]()
        for i, own in enumerate(of_seeds):
            outcome, evaluation = _prepared(own, name) if i else first
            with helpers(own, "components.reporting.table", [name]):
                outcomes.append(replace(outcome, results=evaluation.run()))
            memo.used.update(evaluation.restorer.memo.used)
        memo.forget_unused(name)
        page = write(*outcomes)
        run.log_artifact(page)
    log.info("%s is at %s", name, page)
    return page


def _prepared(params: Params, name: str) -> tuple[Outcome, Evaluation]:
    """One seed's models, and its evaluation, of which there are no results yet."""
    zoo = Zoo.of(params, name, params.evaluate.split)
    experiment, changed = zoo.experiment, zoo.params
    models, missing = zoo.provide()
    plan = [column for column in columns(changed, models) if column.kind in experiment.families]
    _report_missing(name, plan, missing)
    needed = {model: models[model] for model in _needed(plan)}
    evaluation = prepare(changed, plan, needed, home_of(name, changed))
    evaluation.kept_sets, evaluation.name = SETS, name
    trained = {model: _images_of(folder) for model, folder in models.items()}
    imported = {model: file for model, folder in models.items() if (file := imported_from(folder))}
    return Outcome(name, experiment, changed, plan, Results(), missing, trained, imported), evaluation


def _needed(plan: Sequence[Measured]) -> set[str]:
    return {method.model for column in plan for method in column.methods if method.model}


def _report_missing(name: str, plan: Sequence[Measured], missing: Mapping[str, str]) -> None:
    """Say what is missing, and what can be computed nevertheless.

    Raises:
        CheckpointError: nothing can.
    """
    rows = list(dict.fromkeys(method.name for column in plan for method in column.methods))
    if missing and not rows:
        reasons = "; ".join(missing.values())
        raise CheckpointError(f"nothing can be computed: {reasons}. `make table` without TRAIN=0 trains them")
    for reason in missing.values():
        log.warning("%s: %s", name, reason)
    if missing:
        log.warning("%s: computed nevertheless: %s", name, ", ".join(rows))


def _images_of(folder: Path) -> int:
    return int(load_manifest(folder).get("nimg", 0))


# What is written.


def write(outcome: Outcome, *others: Outcome) -> Path:
    """The page, its Markdown, the pictures, and everything as JSON; others: the same with other seeds."""
    data = REPORTS / f"{outcome.name}.json"
    data.parent.mkdir(parents=True, exist_ok=True)
    content = as_data(outcome) | {"seeds": [of_seed(one) for one in (outcome, *others)]}
    data.write_text(json.dumps(content, indent=1) + "\n")
    return describe(outcome, *others).write(data.with_suffix(".html"), data.with_suffix(".md"))


def findings(outcome: Outcome) -> list[Finding]:
    """How the paper's claims come out here."""
    experiment, kinds = outcome.experiment, [column.kind for column in outcome.plan]
    evidence = Evidence(outcome.results.records, outcome.home / "scores")
    return verdicts.findings(experiment.claims, experiment.names, kinds, evidence)


def describe(outcome: Outcome, *others: Outcome) -> Page:
    """Everything that the page says."""
    experiment, records = outcome.experiment, outcome.results.records
    notes = [*outcome.missing.values(), *tables.reasons(records)]
    notes += [
        f"the model '{name}' has weights of the published code ({file}), which learned its law of degradations"
        for name, file in outcome.imported.items()
    ]
    notes += [*draws_notes(outcome), *tables.real_notes(outcome.results.real), *frozen_notes(outcome.results)]
    claims_heading = "What the paper claims" if experiment.table else "What is claimed"
    return Page(
        title=f"{heading(outcome.name)}: {experiment.title}",
        lead=caption(outcome),
        sections=(
            Section("Results", [results_table(outcome), Notes(notes)]),
            *([seeds_section([outcome, *others])] if others else []),
            Section(claims_heading, [claims_table([outcome, *others])] if experiment.claims else []),
            Section("Figures", figures_of(outcome)),
            Section("What each row is told of a measurement", [Notes(told(outcome))]),
            Section("How each row sampled, and what it took", [Notes(settings(outcome)), costs_table(outcome)]),
        ),
    )


def claims_table(outcomes: Sequence[Outcome]) -> Table:
    """How each claim came out with the first seed, and where there are more, how often each way with all of them."""
    first, *others = ({(f.claim, f.degradation): f for f in findings(outcome)} for outcome in outcomes)
    rows = []
    for key, finding in first.items():
        verdict = Cell(finding.verdict, style=verdicts.STYLES[finding.verdict])
        counts = Counter([finding.verdict, *(other[key].verdict for other in others if key in other)])
        over = [", ".join(f"{outcome} {n}" for outcome, n in counts.items())] if others else []
        rows.append([*key, verdict, *over, finding.numbers])
    return listing(f"Claim, Degradation, Here, {'Over seeds, ' if others else ''}Numbers", rows)


def seeds_section(outcomes: Sequence[Outcome]) -> Section:
    """Each number's mean and standard deviation over seeds."""
    first = outcomes[0]
    groups, metrics = first.experiment.groups, metrics_of(first)
    columns = [
        Column(METRICS[m].label + METRICS[m].arrow, tables.name_of(kind)) for kind in metrics for m in metrics[kind]
    ]
    found = [by_key(available(outcome.results.records)) for outcome in outcomes]

    def row(method: str) -> list[Cell]:
        keys = [(method, kind, m) for kind in metrics for m in metrics[kind]]
        return [
            Cell(tables.label(method)),
            *(spread([r[key].value for r in found if key in r], key[2]) for key in keys),
        ]

    rows = {group: [row(method) for method in methods] for group, methods in groups.items()}
    seeds = ", ".join(str(outcome.params.seed) for outcome in outcomes)
    return Section(
        "Spread over seeds",
        [Table((Column("Method", is_number=False), *columns), rows)],
        f"Mean ± standard deviation over the seeds {seeds}. Each has its own trainings, operators, noise and draws, of "
        f"the same images; all other tables of this page are of seed {first.params.seed}.",
    )


def spread(values: Sequence[float | None], metric: str) -> Cell:
    """Mean and standard deviation of a metric's values; of a single one there is none."""
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return Cell("–")
    return Cell(f"{METRICS[metric].show(mean(there))} ± {METRICS[metric].show(stdev(there))}")


def results_table(outcome: Outcome) -> Table:
    """The paper's table with our numbers, its own beside them."""
    experiment, records = outcome.experiment, outcome.results.records
    names = {name: experiment.row(name).paper or name for name in experiment.names}
    return tables.layout(experiment.groups, metrics_of(outcome), records, paper_of(outcome), names)


def metrics_of(outcome: Outcome) -> dict[str, list[str]]:
    """{degradation: metrics that are shown}, with stand-ins for what cannot be computed."""
    wanted, records = outcome.experiment.metrics, outcome.results.records
    kinds = [column.kind for column in outcome.plan]
    return {kind: tables.with_stand_ins(wanted, [r for r in records if r.degradation == kind]) for kind in kinds}


def paper_of(outcome: Outcome) -> Paper:
    published = Paper.of_table(outcome.experiment.table, outcome.params.data.name)
    return published.under(outcome.params.evaluate.families, outcome.params.degradation)


def costs_table(outcome: Outcome) -> Table:
    """What each cell took."""
    names = ("method", "degradation", "n", "n_diverged", "nfe", "seconds_per_image", "peak_memory_mib", "device")
    heads = "Method, Degradation, #Images, #Diverged, #NFE, #Seconds per image, #Peak memory (MiB), Device"
    costs = outcome.results.costs
    return listing(heads, [["–" if cost[name] is None else cost[name] for name in names] for cost in costs])


def heading(name: str) -> str:
    """table_03 as people say it."""
    kind, _, number = name.partition("_")
    return f"{kind.capitalize()} {int(number)}" if number.isdigit() else "Beyond the paper"


def caption(outcome: Outcome) -> str:
    """What was measured on what, and how far that is from the paper's scale."""
    params, experiment, paper = outcome.params, outcome.experiment, paper_of(outcome)
    noise = "no noise" if params.evaluate.noise.is_absent else params.evaluate.noise.describe()
    trained = ", ".join(f"{images:,}" for images in sorted(set(outcome.trained_images.values()))) or "no"
    text = (
        f"{params.data.name}, {params.data.image_size}×{params.data.image_size} pixels, {params.evaluate.split} split, "
        f"{params.evaluate.n_images} images; {noise}; models trained on {trained} images."
    )
    if tuned := tuned_line(outcome):
        text = f"{text} {tuned}"
    if paper.dataset:
        return (
            f"{text} The paper's numbers ({paper.dataset}, {experiment.n_images:,} images) stand below ours where the "
            "operators, trained on and measured by, follow the published code's law."
        )
    if not experiment.table:
        return text
    reduced = " Reduced in images and steps." if params.evaluate.n_images < experiment.n_images else ""
    return f"{text} The paper's table is on {experiment.dataset}, so its numbers do not stand here.{reduced}"


def tuned_line(outcome: Outcome) -> str:
    """By which metric the step sizes were found, and on what; empty where all are the samplers' own."""
    found: dict[str, list[str]] = {}
    tuned = [method for column in outcome.plan for method in column.methods if method.tuned_by]
    for method in tuned:
        found.setdefault(method.tuned_by or "", []).append(tables.label(method.name))
    if not found:
        return ""
    by = "; ".join(f"{', '.join(dict.fromkeys(names))} by {METRICS[metric].label}" for metric, names in found.items())
    headline = outcome.experiment.metrics[0]
    rest = "" if headline in found else f", as none were tuned by {METRICS[headline].label}"
    of_table = outcome.params.tables.tuned.get(outcome.name, {})
    own = dict.fromkeys(tables.label(method.name) for method in tuned if method.name in of_table)
    here = f" Those of {', '.join(own)} are of this table's own models and measurements." if own else ""
    return f"Step sizes were tuned on the validation split: {by}{rest}.{here}"


def draws_notes(outcome: Outcome) -> list[str]:
    """Of how many draws the scores of draws are, and how little of a coverage so few can lack."""
    params = outcome.params.evaluate
    n, most = params.calibration_draws, min(params.calibration_images, params.n_images)
    if most == 0 or "coverage_90" not in outcome.experiment.metrics:
        return []
    least = max(1 - (1 - LEVEL) / 2 * (n + 1), 0)
    return [
        f"Draws are judged by {n} of each of {most} images. Of so few, even such without any spread would cover "
        f"{least:.2f} of the pixels by chance: the std ratio tells more."
    ]


def frozen_notes(results: Results) -> list[str]:
    """On which measurements all of it was."""
    found = ", ".join(f"{tables.name_of(kind)} {value[:12]}" for kind, value in results.measurements.items())
    return [f"Frozen measurements (sha256), the same for every row: {found}."]


def told(outcome: Outcome) -> list[str]:
    """What each row knows of a measurement, and of images beyond what its network has learnt; equal ones in a line."""
    methods = {method.name: method for column in outcome.plan for method in column.methods}
    found: dict[str, list[str]] = {}
    for name, method in methods.items():
        found.setdefault(told_to(outcome.experiment, outcome.params, method), []).append(tables.label(name))
    return [f"{', '.join(names)}: {what}" for what, names in found.items()]


def told_to(experiment: Experiment, params: Params, method: Method) -> str:
    """What a method knows, and whether its sampler or its network does."""
    plain, with_level = ("y and H", "y, H and σ_y")
    of_algorithm = plain if params.evaluate.noise.is_absent or method.sampler is None else with_level
    if method.model is None:
        return f"{of_algorithm}{BY_GAUSSIAN if method.needs_prior else ''}, without a trained network"
    spec = experiment.models.get(method.model) or Model(train=method.model)
    params = experiment.changed_for(method.model, params)
    network = params.architecture(params.first_of(spec.train))
    gaussian = BY_GAUSSIAN if network.preconditioning == "gaussian" else ""
    if method.withheld or network.variant == "unconditional":
        return f"the sampler {of_algorithm}, the network nothing of the measurement{gaussian}"
    if network.variant == "palette":
        plain, with_level = "H†y", "H†y and σ_y"
    return f"the network {with_level if network.knows_noise_level else plain}{gaussian}"


def settings(outcome: Outcome) -> list[str]:
    """How each row samples, where it differs from its algorithm's own settings; by family where families differ."""
    found: dict[str, dict[str, list[str]]] = {}
    for column in outcome.plan:
        for method in column.methods:
            if method.sampler is not None:
                way = settings_of(method.sampler)
                found.setdefault(method.name, {}).setdefault(way, []).append(tables.name_of(column.kind))
    lines = []
    for name, ways in found.items():
        for way, families in ways.items():
            where = f" ({', '.join(families)})" if len(ways) > 1 else ""
            lines.append(f"{tables.label(name)}{where}: {way}")
    return lines


def settings_of(sampler: Sampler) -> str:
    """What differs from the algorithm's own settings."""
    chosen, own = sampler.model_dump(), type(sampler)().model_dump()
    changed = [f"{key} {value} instead of {own[key]}" for key, value in chosen.items() if own[key] != value]
    return f"{chosen['kind']}, {', '.join(changed) or 'its own settings'}"


def figures_of(outcome: Outcome) -> list[Picture]:
    """The pictures, one per degradation."""
    if outcome.experiment.shows == "curve":
        return [curve_of(outcome)]
    restorations, found = outcome.home / "restorations", []
    for column in outcome.plan:
        kind, methods = column.kind, [method.name for method in column.methods]
        path = REPORTS / f"{outcome.name}_{kind}.png"
        if kind == UNCONDITIONAL:
            pictures.samples(path, restorations / kind, methods)
        elif outcome.experiment.shows == "components":
            pictures.components(path, restorations / kind, methods[0])
        else:
            # Ours, which comes last in the paper's order.
            drawn = [name for name in methods if outcome.params.methods[name].extra_draws]
            pictures.gallery(path, restorations, kind, drawn[-1] if drawn else None)
        found.append(Picture(path, tables.name_of(kind)))
    return found


def curve_of(outcome: Outcome) -> Picture:
    """Each metric against network calls, one line per group of rows, one panel per degradation."""
    found = by_key(available(outcome.results.records))
    panels = {
        (METRICS[metric].label + METRICS[metric].arrow, tables.name_of(column.kind)): {
            group: figures.points((r for n in names if (r := found.get((n, column.kind, metric)))), lambda r: r.nfe)
            for group, names in outcome.experiment.groups.items()
        }
        for metric in tables.with_stand_ins(outcome.experiment.metrics, found.values())
        for column in outcome.plan
    }
    path = REPORTS / f"{outcome.name}.png"
    figures.lines(path, panels, "network calls")
    return Picture(path, "Quality against network calls")


def as_data(outcome: Outcome) -> dict[str, Any]:
    """The table for programs."""
    return {
        "name": outcome.name,
        "title": outcome.experiment.title,
        "caption": caption(outcome),
        "dataset": outcome.params.data.name,
        "settings": settings(outcome),
        "missing": dict(outcome.missing),
        "costs": outcome.results.costs,
        **of_seed(outcome),
    }


def of_seed(outcome: Outcome) -> dict[str, Any]:
    """What depends on the seed."""
    return {
        "seed": outcome.params.seed,
        "measurements_sha256": outcome.results.measurements,
        "claims": [asdict(finding) for finding in findings(outcome)],
        "records": [record.as_json() for record in outcome.results.records],
    }


def main() -> None:
    """Make a table or figure of the paper, or all of them."""
    command = cli.parser(main.__doc__)
    command.add_argument("names", nargs="*", help=f"of {', '.join(experiment_names())}; default: all")
    command.add_argument("--seeds", type=int, default=1, help="how often, with params.seed and the following numbers")
    command.add_argument("--no-train", action="store_true", help="leave out rows whose model is not trained")
    failed = []
    with cli.started(command, quiet=is_helper()) as options:
        for name in options.names or experiment_names():
            try:
                table(options.params, name, trains=not options.no_train, seeds=options.seeds)
            except InvFusionError as error:
                failed.append(name)
                log.error("error: %s: %s", name, error)
    if failed:
        sys.exit(
            f"error: {', '.join(failed)} could not be made; the reasons stand above, and what was computed is kept"
        )


if __name__ == "__main__":
    main()
