"""reports/oracle.html: what the oracle found, as tables and plots."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from matplotlib import pyplot as plt

from components.oracle.records import OracleRecord, Results
from components.params import Params
from components.reporting import figures
from components.reporting.figures import Tiles
from components.reporting.pages import Page, Picture, Section
from components.reporting.tables import Cell, Column, Table, listing, span
from invfusion.oracle import LIMIT, GaussianMixture
from invfusion.rng import generators

PAGE = Path("reports/oracle.html")
FIGURES = Path("reports/oracle_figures")
N_SHOWN = 12
DETAILS = ("sliced_wasserstein", "mean_error", "covariance_error", "spread", "coverage_90", "tarp_gap")
OF_COMPONENTS = ("nppc_captured", "nppc_std_ratio")
REFERENCES = ("exact", "decoy_narrow", "decoy_wide", "decoy_shifted")
EXCESS = 0.05

LEAD = (
    "For a Gaussian mixture as prior, the posterior given y = Hx + n is a Gaussian mixture again, known in closed "
    "form. So every sampler can run with an ideal denoiser, every model can be trained on draws that never end, and "
    "both can be held against exact posterior draws. docs/oracle.md has the equations and how to run your own."
)
MODELS = (
    "Excess risk: the mean squared error of the one-step MMSE estimate over that of the exact posterior mean. 1 is "
    "optimal. The number is 1 + E|D − m|² / E tr C with the exact mean m and covariance C. Below, draws of the trained "
    "models against exact ones, with what exact draws score. Of principal components, predicted in one call: the "
    "posterior variance that they capture over that of the true leading directions, and the predicted over the exact "
    "deviation along them; 1 is perfect in both."
)
DISTANCE = (
    "The green band is what cannot be told from exact draws. A curve that flattens above it is a bias that no number "
    "of steps removes."
)
CALIBRATION = (
    "Above, TARP: the share of truths whose distance to a random reference image has a rank up to the credibility. "
    "Below: how often the central interval of each level holds a pixel of the truth; below the diagonal the draws vary "
    "too little. Dotted: exact draws and decoys."
)

Item = TypeVar("Item")
Name = TypeVar("Name", bound=Hashable)
Curve = Mapping[str, Any]


def write_page(params: Params, results: Results, priors: Mapping[str, GaussianMixture]) -> Path:
    """Draw the figures and write the page; returns its path."""
    of_samplers = [r for r in results.records if r.judgement == "sampler"]
    of_models = [r for r in results.records if r.judgement == "model"]
    curves = by(results.curves, lambda curve: curve["judgement"])
    samplers = (
        f"Sliced Wasserstein distance between {params.oracle.n_samples} draws of the sampler and exact ones, over the "
        f"noise floor (the same distance between two exact sets), pooled over {params.oracle.n_measurements} "
        f"measurements. 1 is exact; up to {LIMIT} passes (green). Below it the 95% bootstrap interval over "
        "measurements. Decoys are exact draws with a spread 10% too small or large, or a mean a fifth of a deviation "
        "off: a test that lets them pass is blind."
    )
    return Page(
        title="Truth: samplers and models against exact posteriors",
        lead=LEAD,
        sections=(
            Section("Priors", [_prior_figure(name, prior) for name, prior in priors.items()]),
            Section(
                "Samplers with an ideal denoiser",
                [
                    *(_ratio_table(name, [r for r in of_samplers if r.prior == name]) for name in priors),
                    _distances(of_samplers),
                    _calibration("samplers", curves.get("sampler", [])),
                ],
                samplers,
            ),
            Section(
                "Models trained on draws of the prior",
                [
                    _final_excess(of_models),
                    _excess(of_models),
                    _details(of_models),
                    _calibration("models", curves.get("model", [])),
                    _components(of_models),
                    _deviations([curve for curve in results.curves if "predicted" in curve]),
                ],
                MODELS,
            ),
            Section("All numbers of the samplers", [_details(of_samplers)], folded=True),
        ),
    ).write(PAGE)


def by(items: Iterable[Item], key: Callable[[Item], Name]) -> dict[Name, list[Item]]:
    """The items under their keys, in order."""
    groups: dict[Name, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


# Tables.


def label(record: OracleRecord) -> str:
    """How a method is called: its name, with the settings that differ from the defaults."""
    if record.method in REFERENCES or record.judgement == "model":
        return record.method
    settings = ", ".join(f"{name} {value}" for name, value in record.settings.items() if name != "kind")
    return f"{record.method} ({settings})" if settings else record.method


def _shown(record: OracleRecord) -> Cell:
    """A number to three digits, with its interval."""
    if record.value is None or record.low is None or record.high is None:
        return Cell("–", record.unavailable)
    return Cell(f"{record.value:.3g}", span(f"{record.low:.3g}", f"{record.high:.3g}"))


def _ratio_table(prior: str, records: Sequence[OracleRecord]) -> Table:
    """Sliced Wasserstein distance over its floor: a row for each method, a column for each cell."""
    chosen = [r for r in records if r.metric == "sliced_wasserstein"]
    columns = list(dict.fromkeys(r.cell for r in chosen))
    rows = []
    for name, found in by(chosen, label).items():
        of_cell = {r.cell: r for r in found}
        calls = next((r.nfe for r in found if r.nfe is not None), "–")
        rows.append([Cell(name), Cell(str(calls)), *(_ratio(of_cell.get(column)) for column in columns)])
    head = (Column("Sampler", is_number=False), Column("NFE"), *map(Column, columns))
    return Table(head, {"": rows}, f"Prior “{prior}”")


def _ratio(record: OracleRecord | None) -> Cell:
    if record is None or not record.ratio:
        return Cell("–", record.unavailable if record else "")
    assert record.low is not None
    assert record.high is not None
    assert record.floor is not None
    interval = span(f"{record.low / record.floor:.2f}", f"{record.high / record.floor:.2f}")
    return Cell(f"{record.ratio:.2f}", interval, style="holds" if record.ratio <= LIMIT else "")


def _details(records: Sequence[OracleRecord]) -> Table | None:
    """All numbers of draws: a row for each method on each cell; below each number what exact draws score."""
    rows = []
    for (prior, cell, name, calls), found in by(records, lambda r: (r.prior, r.cell, label(r), r.nfe)).items():
        of_metric = {r.metric: r for r in found}
        if DETAILS[0] in of_metric:
            rows.append([prior, cell, name, calls, *(_beside_floor(of_metric.get(metric)) for metric in DETAILS)])
    heads = "Prior, Cell, Method, #NFE, " + ", ".join(f"#{metric}" for metric in DETAILS)
    return listing(heads, rows, f"{len(rows)} cells") if rows else None


def _beside_floor(record: OracleRecord | None) -> Cell:
    if record is None or record.value is None:
        return Cell("–")
    return Cell(f"{record.value:.3f}", "" if record.floor is None else f"{record.floor:.3f}")


def _final_excess(records: Sequence[OracleRecord]) -> Table:
    """Each model's excess at the end of its training."""
    groups = by((r for r in records if r.metric == "excess_mse"), lambda r: (r.method, r.width, r.cell))
    last = [max(group, key=lambda r: r.images) for group in groups.values()]
    rows = [(r.method, r.width, f"{r.images:,}", r.cell, _shown(r)) for r in last]
    return listing("Model, #Width, #Training images, Degradation, #MSE / Bayes MSE", rows)


def _components(records: Sequence[OracleRecord]) -> Table | None:
    rows = [(r.metric, r.degradation, _shown(r)) for r in records if r.metric in OF_COMPONENTS]
    return listing("Number, Degradation, #Value", rows) if rows else None


# Figures.


def _prior_figure(name: str, prior: GaussianMixture) -> Picture:
    """Draws of a prior."""
    drawn = prior.sample(generators(0, "oracle/shown", range(N_SHOWN)))
    path = figures.gallery(
        FIGURES / f"prior_{name}.png", [Tiles("", [image]) for image in ((drawn + 1) / 2).float().numpy()]
    )
    return Picture(path, f"Draws of the prior “{name}”")


def _distances(records: Sequence[OracleRecord]) -> Picture | None:
    """Distance over the floor against network calls, a panel for each cell of each prior."""
    usable = [r for r in records if r.metric == "sliced_wasserstein" and r.ratio and r.nfe]
    panels = {
        (f"distance / floor, {prior}", cell): {
            method: figures.points(same, lambda r: r.nfe, lambda r, value: value / (r.floor or 1))
            for method, same in by(found, lambda r: r.method).items()
        }
        for (prior, cell), found in by(usable, lambda r: (r.prior, r.cell)).items()
    }
    if not panels:
        return None
    path = FIGURES / "distances.png"
    figures.lines(path, panels, "network calls", log_y=True, level=1, band=(0.9, LIMIT))
    return Picture(path, "Distance over the noise floor against network calls", DISTANCE)


def _excess(records: Sequence[OracleRecord]) -> Picture | None:
    """Excess risk against training images, a panel for each family."""
    chosen = [r for r in records if r.metric == "excess_mse" and r.value is not None and r.images]
    panels = {
        ("MSE / Bayes MSE − 1", degradation): {
            name: figures.points(same, lambda r: r.images, lambda _, value: value - 1)
            for name, same in by(found, _trained_name).items()
        }
        for degradation, found in by(chosen, lambda r: r.degradation).items()
    }
    if not panels:
        return None
    read = {_trained_name(r): r.method for r in chosen}
    figures.lines(FIGURES / "excess.png", panels, "training images", log_y=True, level=EXCESS, models=read)
    return Picture(FIGURES / "excess.png", "Excess risk against training images", f"The dashed line is {EXCESS:.0%}.")


def _trained_name(record: OracleRecord) -> str:
    noise = f", σ {record.sigma_y:g}" if record.degradation == "denoising" else ""
    return f"{record.method}, width {record.width}{noise}"


def _calibration(name: str, curves: Sequence[Curve]) -> Picture | None:
    """The calibration curves of the first prior at its highest noise level, each method at its most steps."""
    usable = [c for c in curves if "tarp" in c]
    if not usable:
        return None
    prior, sigma_y = usable[0]["prior"], max(c["sigma_y"] for c in usable)
    usable = [c for c in usable if c["prior"] == prior and c["sigma_y"] == sigma_y]
    panels = {
        f"{kind}, σ {sigma_y:g}": {
            method: max(same, key=lambda c: c["nfe"]) for method, same in by(found, lambda c: c["method"]).items()
        }
        for kind, found in by(usable, lambda c: c["degradation"]).items()
    }
    figures.calibration(FIGURES / f"{name}.png", panels, dotted=REFERENCES)
    return Picture(FIGURES / f"{name}.png", f"Calibration of {name}", CALIBRATION)


def _deviations(curves: Sequence[Curve]) -> Picture | None:
    """Predicted against exact standard deviations along the predicted directions."""
    if not curves:
        return None
    with plt.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(4.5, 3.4), layout="constrained")
        for curve in curves:
            axes.plot(curve["actual"], curve["predicted"], ".", color=figures.COLOURS["nppc"], markersize=3, alpha=0.5)
        limit = max(max(c["actual"] + c["predicted"]) for c in curves)
        axes.plot([0, limit], [0, limit], color=figures.INK, linewidth=0.8)
        axes.set(xlabel="exact deviation", ylabel="predicted deviation", aspect="equal")
        axes.grid()
        path = figures.save(figure, FIGURES / "deviations.png")
    return Picture(path, "Predicted against exact deviations along NPPC's directions")
