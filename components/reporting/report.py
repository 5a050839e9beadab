"""Write the report: one self-contained HTML page, and the same as Markdown with PNG figures.

Reads what `components/evaluation/evaluate.py` and the training stages left on disk, computes nothing but comparisons
and layout, and writes the same bytes for the same inputs.
"""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.params import UNCONDITIONAL, Params
from components.paths import COSTS, DETAILS, EVALUATION, LOGS, MODELS, file_name
from components.records import Record, available, read_records
from components.registry.gates import registered_method
from components.reporting import figures, pictures, tables
from components.reporting.pages import Block, Notes, Page, Picture, Section
from components.reporting.paper import NOT_IN_PAPER, Paper, table_1
from components.reporting.tables import Table, listing
from components.reporting.verdicts import Contest, Evidence
from invfusion.metrics import METRICS
from invfusion.training.recipes import RECIPES

log = logging.getLogger(__name__)

REPORTS = Path("reports")
FIGURES = REPORTS / "figures"

CITATION = (
    "Noam Elata, Hyungjin Chung, Jong Chul Ye, Tomer Michaeli, Michael Elad: InvFusion: Bridging Supervised and "
    "Zero-shot Diffusion for Inverse Problems, arXiv:2504.01689. Every measured number on this page stands in "
    "reports/evaluation.json."
)
# By which draws and point estimates are compared. A proper score rewards accuracy and calibration of draws together;
# PSNR favours draws without spread, and comes second there.
OF_DRAWS, OF_POINTS = ("energy_score", "psnr", "consistency_mse"), ("psnr", "consistency_mse")
HEADLINES = ("energy_score", "psnr")
# What evaluations of the paper's kind call "not a measurement".
GENERATION = (UNCONDITIONAL, "null")
HOW = {
    "claims": "Differences are means over the images that both restored, with the 95% bootstrap interval of that "
    "paired difference: ✓ InvFusion is better, ✗ it is worse, ? the interval contains 0, nothing is "
    "decided. Draws are judged by the energy score where it was measured, a proper score of accuracy and calibration "
    "together; PSNR, below it, favours draws without spread. One-step estimates are judged by PSNR.",
    "tables": "Every method of a column saw the same frozen measurements. PSNR (dB, against the truth) rewards the "
    "mean of all plausible images, so the one-step MMSE predictors lead it by construction: compare samplers with "
    "samplers. FD-px8 is the Fréchet distance between the restored images and other real ones as sets, in the space of "
    "their pixels averaged to 8×8; CFD-px8 is the same after the restorations were projected onto the measurements. "
    "They are not FID and CFID, and no claim is judged by them: below the tables stands how held-out real images "
    "score. Consistency (cons.) is the mean squared difference between H "
    "of the restoration and y, in thousandths; 0 is perfect agreement with what was measured. Bold marks the best "
    "value of a column, NFE the network evaluations per image.",
    "unconditional": "Images generated from noise alone, compared with the held-out images as a set.",
    "galleries": "Each row is one held-out image; each column one method. Samplers started from the same noise. H†y is "
    "the measurement shown as an image. The number below a restoration is its PSNR in dB. Pixels are enlarged without "
    "smoothing. Bright places in the last column are where the registered model's draws differ: what the measurement "
    "leaves open.",
    "calibration": "Among several posterior samples of a held-out image, the truth must look like one more. Above: "
    "TARP, the share of truths whose distance to a random reference image has a rank up to the credibility. Middle: "
    "how often the central interval of each level holds a pixel of the truth. Below: the error of the samples' mean "
    "against the deviation that they predict, both of one half of the draws, in groups of pixels that the other half "
    "makes; for NPPC one point per direction. Below the diagonal in the middle, or above it at the bottom, a method is "
    "too sure of itself. With n images a curve of TARP wanders by about 0.9 / √n by chance.",
    "components": "One network call predicts the posterior mean and the orthogonal directions w in which the true "
    "image most likely differs from it, with the standard deviation σ along each. A direction is drawn with its "
    "contrast enhanced (grey: no change), between the mean moved by two standard deviations either way. A good "
    "direction turns one plausible image into another. Captured energy is the share of the mean's squared error that "
    "lies in the predicted directions; std ratio the predicted over the actual standard deviation along them (1 is "
    "calibrated).",
    "costs": "Milliseconds per image, each draw being one, in batches on the machine that evaluated, whose other "
    "processes restored too: they compare within this table only.",
    "curves": "Logged loss (faint) and its running mean over the number of images seen, on a logarithmic axis. Losses "
    "compare within a panel only.",
}


def report(params: Params) -> Path:
    """Write reports/index.html and reports/report.md with reports/figures/; returns the path of the page.

    Raises:
        DataError: the evaluation is missing.
    """
    page = describe(params, read_records(EVALUATION)).write(REPORTS / "index.html", REPORTS / "report.md")
    log.info("the report is at %s", page)
    return page


def describe(params: Params, records: Sequence[Record]) -> Page:
    """Everything that the report says."""
    trained, unseen = split_degradations(params, records)
    kinds = trained + unseen
    paper = Paper.of_noise(params.evaluate.noise, params.data.name).under(params.evaluate.families, params.degradation)
    contests = contests_of(params, records, kinds)
    headlines = [line for c in contests for m in c.metrics if m in HEADLINES and (line := c.headline(m))]
    restoration = restoration_tables(params, records, trained, unseen, paper)
    generation = generation_table(params, records, paper)
    return Page(
        title=f"InvFusion on {params.data.name}",
        lead=lead(params),
        headlines=headlines or ["This evaluation holds no comparison of InvFusion with another method."],
        facts=facts(params),
        sections=(
            Section("Models", [models()]),
            Section(
                "What the numbers show",
                [*(c.table() for c in contests), psnr_figure(params, records, kinds)],
                HOW["claims"],
            ),
            Section("Restoration", [*restoration, Notes(notes(records))], HOW["tables"]),
            Section("Unconditional generation", [generation], HOW["unconditional"] if generation else ""),
            *pictured(params, kinds, components_table(params, records)),
            Section("What restoring took", [costs_table(kinds)], HOW["costs"], folded=True),
            Section("The paper's numbers", [paper_table()], paper_line(paper)),
        ),
        footer=CITATION,
    )


def pictured(params: Params, kinds: Sequence[str], fit: Table | None) -> list[Section]:
    """The sections that are about figures, where these are there."""
    found: list[tuple[str, Sequence[Block | None], str]] = [
        ("Galleries", galleries(kinds, registered_method(params)), "galleries"),
        ("Calibration", [calibration_figure(params, kinds)], "calibration"),
        ("Directions of uncertainty", [components_figure(params, kinds), fit], "components"),
        ("Training", [curve_figure()], "curves"),
    ]
    return [Section(title, blocks, HOW[how]) for title, blocks, how in found if any(blocks)]


# Words.


def lead(params: Params) -> str:
    return (
        f"Restorations of {params.evaluate.n_images} {params.evaluate.split} images at "
        f"{params.data.image_size}×{params.data.image_size} pixels from incomplete linear measurements y = Hx + n. The "
        f"diffusion models were trained on {params.train.images:,} images each by one recipe; they differ in what they "
        "know of H."
    )


def facts(params: Params) -> dict[str, str]:
    """What was run, on what."""
    manifest = manifest_of(params.register_.model)
    sampler = params.evaluate.sampler
    return {
        "Dataset": f"{params.data.name}, digest {str(manifest.get('data_digest', 'unknown'))[:12]}",
        "Code": f"revision {short_revision(manifest)}",
        "Seed": str(params.seed),
        "Trained on": ", ".join(trained_kinds(params)),
        "Measurement noise": "none" if params.evaluate.noise.is_absent else params.evaluate.noise.describe(),
        "Sampler": f"{sampler.kind}, {sampler.n_steps} steps",
    }


def short_revision(manifest: Mapping[str, Any]) -> str:
    """A commit as people read it; `-dirty` stays visible."""
    commit, dash, dirty = str(manifest.get("git_revision", "unknown")).partition("-")
    return commit[:10] + dash + dirty


def manifest_of(model: str) -> dict[str, Any]:
    path = MODELS / model / "manifest.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def models() -> Table | None:
    """The trained models that are on disk."""
    rows = [
        (recipe.label, recipe.given, count_of(name, "n_parameters"), count_of(name, "nimg"))
        for name, recipe in RECIPES.items()
        if (MODELS / name / "model.safetensors").exists()
    ]
    return listing("Model, Is given, #Parameters, #Training images", rows) if rows else None


def count_of(model: str, name: str) -> str:
    """A count of a model's manifest, such as its parameters, or a dash where it is not there."""
    manifest = manifest_of(model)
    return f"{manifest[name]:,}" if name in manifest else "–"


def notes(records: Sequence[Record]) -> list[str]:
    """What could not be measured, and on which measurements the rest was."""
    hashes = {tables.name_of(r.degradation): r.measurements_sha256 for r in records if r.measurements_sha256}
    frozen = ", ".join(f"{name} {value[:12]}" for name, value in hashes.items())
    path = DETAILS / "real.json"
    real = tables.real_notes(json.loads(path.read_text())) if path.is_file() else []
    return [*tables.reasons(records), *real, *([f"Frozen measurements (sha256): {frozen}."] if frozen else [])]


def paper_line(paper: Paper) -> str:
    if paper.dataset:
        return (
            f"This dataset is the paper's {paper.dataset}: its numbers stand below ours where they mean the same and "
            "operators follow the published code's law."
        )
    return (
        "The paper reports no number for this dataset and noise. The table below is for orientation: its models are "
        "larger and trained for longer on other images, so neither values nor the order of methods need be the same."
    )


# Tables.


def trained_kinds(params: Params) -> list[str]:
    """The families of degradation that the conditional models were trained on."""
    members = getattr(params.degradation, "members", [params.degradation])
    return [tables.name_of(member.kind).lower() for member in members]


def split_degradations(params: Params, records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """The evaluated degradations: those the models were trained on, and the others."""
    found = [d for d in dict.fromkeys(r.degradation for r in records) if d not in GENERATION]
    kinds = trained_kinds(params)
    trained = [name for name in found if tables.name_of(name).lower() in kinds]
    return trained, [name for name in found if name not in trained]


def contests_of(params: Params, records: Sequence[Record], kinds: Sequence[str]) -> list[Contest]:
    """Every method of InvFusion against what needs no training, every zero-shot method, and the others of its kind."""
    evidence, groups = Evidence(records, DETAILS / "scores"), tables.grouped(params.methods, records)
    there = {(r.method, r.metric) for r in available(records) if r.degradation in kinds}
    untrained = [name for group in tables.GROUPS[:2] for name in groups.get(group, [])]
    apart, found = with_components(params), []
    for group, metrics in zip(tables.GROUPS[2:], (OF_DRAWS, OF_POINTS), strict=True):
        for name in groups.get(group, []):
            known = [metric for metric in metrics if (name, metric) in there]
            if is_invfusion(params, name) and name not in apart and known:
                rivals = [*untrained, *(other for other in groups[group] if other not in (name, *apart))]
                found.append(Contest(evidence, name, rivals, kinds, known))
    return found


def is_invfusion(params: Params, method: str) -> bool:
    """Whether a method reads out a network that applies the operator, or one whose training went on from such."""
    config = params.methods.get(method)
    model = "" if config is None or config.withheld else config.model or ""
    return model in RECIPES and params.architecture(params.first_of(model)).variant == "invfusion"


def with_components(params: Params) -> list[str]:
    """The methods that read out principal components, whose mean is a by-product."""
    return [name for name, m in params.methods.items() if m.sampler is not None and "components" in m.sampler.requires]


def is_main(record: Record, there: set[str]) -> bool:
    """Whether a record belongs into the main tables: its metric does, and stands in for none that is there."""
    return METRICS[record.metric].main and not any(METRICS[m].stand_in == record.metric for m in there)


def restoration_tables(
    params: Params, records: Sequence[Record], trained: Sequence[str], unseen: Sequence[str], paper: Paper
) -> list[Table | None]:
    """The main tables, then what is left of the metrics."""
    there = {r.metric for r in available(records)}
    main = [r for r in records if is_main(r, there)]
    further = [r for r in records if not is_main(r, there) and not is_of_components(r)]
    inside, outside = "Degradations of the training distribution", "Degradations that did not appear in training"
    return [
        table_of(params, main, trained, inside, "The shape of the paper's Tables 1 and 2.", paper),
        table_of(params, main, unseen, outside, "The shape of the paper's Table 3.", paper),
        table_of(params, further, trained, inside, "Further metrics.", paper),
        table_of(params, further, unseen, outside, "Further metrics.", paper),
    ]


def table_of(
    params: Params, records: Sequence[Record], kinds: Sequence[str], title: str, caption: str, paper: Paper
) -> Table | None:
    """The records of some degradations in the paper's layout; None where there are none."""
    chosen = [r for r in records if r.degradation in kinds]
    columns = tables.metrics_of(chosen, kinds)
    groups = tables.grouped(params.methods, chosen)
    return tables.layout(groups, columns, chosen, paper, title=title, caption=caption) if columns else None


def is_of_components(record: Record) -> bool:
    """Whether a record judges principal components."""
    return "components" in METRICS[record.metric].needs


def components_table(params: Params, records: Sequence[Record]) -> Table | None:
    """How well the predicted directions and deviations fit the actual errors."""
    chosen = [r for r in records if is_of_components(r)]
    kinds = list(dict.fromkeys(r.degradation for r in chosen))
    return table_of(params, chosen, kinds, "Fit of the predicted uncertainty", "", NOT_IN_PAPER)


def generation_table(params: Params, records: Sequence[Record], paper: Paper) -> Table | None:
    title, caption = "Unconditional sampling", "The shape of the paper's Table 4."
    return table_of(params, records, GENERATION, title, caption, paper)


def paper_table() -> Table:
    """The paper's Table 1."""
    records = table_1()
    kinds = list(dict.fromkeys(r.degradation for r in records))
    caption = "64×64 faces, 10 000 images, Inception features. For the ordering of the methods, not for the values."
    groups = {"": list(dict.fromkeys(r.method for r in records))}
    return tables.layout(groups, tables.metrics_of(records, kinds), records, title="Table 1: FFHQ64", caption=caption)


def costs_table(degradations: Sequence[str]) -> Table | None:
    """Milliseconds per image of each method on each family."""
    costs = json.loads(COSTS.read_text()) if COSTS.exists() else []
    took = {(c["method"], c["degradation"]): f"{1000 * c['seconds_per_image']:.3g}" for c in costs}
    methods = dict.fromkeys(method for method, kind in took if kind in degradations)
    rows = [[tables.label(method), *(took.get((method, kind), "–") for kind in degradations)] for method in methods]
    heads = ["Method", *(f"#{tables.name_of(kind)}" for kind in degradations)]
    return listing(", ".join(heads), rows) if rows else None


# Figures.


def psnr_figure(params: Params, records: Sequence[Record], degradations: Sequence[str]) -> Picture | None:
    """PSNR with intervals of everything that restores."""
    chosen = [r for r in records if r.metric == "psnr" and r.has_interval and r.degradation in degradations]
    order = [name for names in tables.grouped(params.methods, chosen).values() for name in names]
    read = {name: method.model for name, method in params.methods.items()}
    points = [
        figures.Point(tables.name_of(r.degradation), read.get(r.method), tables.label(r.method), r.value, r.low, r.high)
        for r in sorted(chosen, key=lambda r: (degradations.index(r.degradation), order.index(r.method)))
        if r.value is not None and r.low is not None and r.high is not None
    ]
    if not points:
        return None
    figures.intervals(FIGURES / "psnr.png", points, "PSNR (dB)")
    return Picture(FIGURES / "psnr.png", "PSNR with 95% intervals", "Further right is closer to the truth.")


def calibration_figure(params: Params, degradations: Sequence[str]) -> Picture | None:
    """Whether the spread of the samplers' draws, and the deviations of NPPC, can be trusted."""
    path = DETAILS / "calibration.json"
    curves = json.loads(path.read_text()) if path.exists() else []
    panels = {
        tables.name_of(d): {tables.label(c["method"]): c for c in curves if c["degradation"] == d}
        for d in degradations
        if any(c["degradation"] == d for c in curves)
    }
    if not panels:
        return None
    read = {tables.label(name): method.model for name, method in params.methods.items()}
    figures.calibration(FIGURES / "calibration.png", panels, models=read)
    return Picture(FIGURES / "calibration.png", "Calibration", "On the diagonal, uncertainty is what it claims to be.")


def galleries(degradations: Sequence[str], drawn: str) -> list[Picture]:
    """One figure per degradation that has restorations on disk; drawn: the method whose further draws are shown."""
    found, restorations = [], DETAILS / "restorations"
    for degradation in (d for d in degradations if (restorations / d).is_dir()):
        file = f"gallery-{degradation}.png"
        pictures.gallery(FIGURES / file, restorations, degradation, drawn)
        found.append(Picture(FIGURES / file, tables.name_of(degradation)))
    return found


def components_figure(params: Params, degradations: Sequence[str]) -> Picture | None:
    """The posterior mean, its principal directions, and the mean moved along each."""
    restorations, methods = DETAILS / "restorations", with_components(params)
    files = [(d, method) for d in degradations for method in methods]
    found = next(((d, m) for d, m in files if (restorations / d / f"{file_name(m)}.safetensors").exists()), None)
    if found is None:
        return None
    degradation, method = found
    path = pictures.components(FIGURES / "components.png", restorations / degradation, method)
    kind = tables.name_of(degradation).lower()
    return Picture(path, f"Posterior principal components, {kind}", "σ below each direction, in [-1, 1] units.")


def curve_figure() -> Picture | None:
    """The logged losses: diffusion models share a panel, the distilled models have one each."""
    panels: dict[str, dict[str, tuple[figures.Array, figures.Array]]] = {}
    for name, recipe in RECIPES.items():
        curve = read_curve(LOGS / f"{name}.csv")
        if curve:
            panels.setdefault("diffusion loss" if recipe.is_diffusion else f"{recipe.label} loss", {})[name] = curve
    if not panels:
        return None
    figures.curves(FIGURES / "training.png", panels)
    return Picture(FIGURES / "training.png", "Training curves", "From the runs' own logs (artifacts/logs).")


def read_curve(path: Path) -> tuple[figures.Array, figures.Array] | None:
    """Image counts and losses, (N,) each, of one log."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        rows = [(float(row["nimg"]), float(row["loss"])) for row in csv.DictReader(file)]
    nimg, loss = np.array(rows, dtype=np.float64).reshape(-1, 2).T
    return (nimg, loss) if len(nimg) else None
