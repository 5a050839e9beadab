"""Write the report: one self-contained HTML page, and the same as Markdown with PNG figures.

Reads what `components/evaluation/evaluate.py` and the training stages left on disk, computes nothing but layout, and
writes the same bytes for the same inputs.
"""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.params import Params
from components.registry.register import read_records
from components.reporting import figures, pictures, tables
from components.reporting.pages import Picture, render
from components.reporting.tables import Claim, Paper, Record, Table

log = logging.getLogger(__name__)

EVALUATION = Path("reports/evaluation.json")
CALIBRATION = Path("artifacts/evaluation/calibration.json")
RESTORATIONS = Path("artifacts/evaluation/restorations")
MODELS = Path("artifacts/models")
LOGS = Path("artifacts/logs")
REPORTS = Path("reports")
FIGURES = REPORTS / "figures"
HERE = Path(__file__).parent

CITATION = (
    "Noam Elata, Hyungjin Chung, Jong Chul Ye, Tomer Michaeli, Michael Elad: InvFusion: Bridging Supervised and "
    "Zero-shot Diffusion for Inverse Problems, arXiv:2504.01689."
)
KNOWS = {
    "unconditional": "no, and sees no measurement",
    "palette": "no: sees H†y",
    "invfusion": "yes: sees H†y, y and H",
    "mmse": "yes",
    "nppc": "yes",
}
HOW = {
    "claims": "The paper's ordering is that InvFusion, which knows the operator, comes before Palette, which must "
    "guess it from H†y. Higher PSNR is better, lower consistency error is better. Small grey numbers are 95% bootstrap "
    "intervals over the images; “holds” without an addition means that they do not overlap.",
    "tables": "Every method of a column saw the same frozen measurements. PSNR (dB, against the truth) rewards the "
    "mean of all plausible images, so the one-step MMSE predictors lead it by construction: compare samplers with "
    "samplers. FD-px8 is the Fréchet distance between the restored and the true images as sets, in the space of their "
    "pixels averaged to 8×8; CFD-px8 is the same after the restorations were projected onto the measurements. They are "
    "not FID and CFID, and compare only within this page. Consistency (cons.) is the mean squared difference between H "
    "of the restoration and y, in thousandths; 0 is perfect agreement with what was measured. Bold marks the best "
    "value of a column, NFE the network evaluations per image.",
    "unconditional": "Images generated from noise alone, compared with the held-out images as a set.",
    "galleries": "Each row is one held-out image; each column one method. Samplers started from the same noise. H†y is "
    "the measurement shown as an image. The number below a restoration is its PSNR in dB. Pixels are enlarged without "
    "smoothing. Bright places in the last column are where InvFusion's draws differ: what the measurement leaves open.",
    "calibration": "Among several posterior samples of a held-out image, the truth must look like one more. Above: "
    "TARP, the share of truths whose distance to a random reference image has a rank up to the credibility. Middle: "
    "how often the central interval of each level holds a pixel of the truth. Below: the error of the samples' mean "
    "against the deviation that they predict, pixels grouped by the latter; for NPPC one point per direction. Below "
    "the diagonal in the middle, or above it at the bottom, a method is too sure of itself. With n images a curve of "
    "TARP wanders by about 0.9 / √n by chance.",
    "nppc": "One network call predicts the posterior mean and the orthogonal directions w in which the true image most "
    "likely differs from it, with the standard deviation σ along each. A direction is drawn with its contrast enhanced "
    "(grey: no change), between the mean moved by two standard deviations either way. A good direction turns one "
    "plausible image into another. Captured energy is the share of the mean's squared error that lies in the predicted "
    "directions; std ratio the predicted over the actual standard deviation along them (1 is calibrated).",
    "curves": "Logged loss (faint) and its running mean over the number of images seen, on a logarithmic axis. Losses "
    "compare within a panel only.",
}


def report(params: Params) -> Path:
    """Write reports/index.html and reports/report.md with reports/figures/; returns the path of the page.

    Raises:
        DataError: the evaluation is missing.
    """
    records = read_records(EVALUATION)
    content = describe(params, records)
    page = REPORTS / "index.html"
    page.write_text(render("report.html.j2", content))
    (REPORTS / "report.md").write_text(render("report.md.j2", content))
    log.info("the report is at %s", page)
    return page


def describe(params: Params, records: Sequence[Record]) -> dict[str, Any]:
    """Everything that the templates show."""
    trained, unseen = split_degradations(params, records)
    paper = Paper.load(HERE / "paper_tables.csv", params.data.name, params.evaluate.noise)
    orderings = tables.claims(records, trained + unseen)
    generation = [r for r in records if r["degradation"] in tables.UNCONDITIONAL]
    content = {
        "data_name": params.data.name,
        "lead": lead(params),
        "facts": facts(params),
        "models": models(),
        "how": HOW,
        "citation": CITATION,
        "claims": tables.claim_grid(orderings),
        "quantities": [quantity for quantity, _, _ in tables.COMPARED],
        "verdict": verdict(orderings),
        "tables": restoration_tables(records, trained, unseen, paper),
        "notes": notes(records),
        "unconditional": generation_table(generation, paper),
        "nppc_table": nppc_table(records),
        "paper_line": paper_line(paper),
        "paper_table": paper.table_1(),
        "galleries": galleries(trained + unseen),
        "figures": {
            "psnr": psnr_figure(records, trained + unseen),
            "nppc": nppc_figure(trained + unseen),
            "calibration": calibration_figure(trained + unseen),
            "curves": curve_figure(),
        },
    }
    return {**content, "sections": sections(content)}


def sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The anchors of the page."""
    present = {
        "claims": ("What the numbers show", True),
        "restoration": ("Restoration", True),
        "unconditional": ("Unconditional generation", content["unconditional"]),
        "galleries": ("Galleries", content["galleries"]),
        "calibration": ("Calibration", content["figures"]["calibration"]),
        "nppc": ("Directions of uncertainty", content["figures"]["nppc"]),
        "training": ("Training", content["figures"]["curves"]),
        "paper": ("The paper's numbers", True),
    }
    return [(anchor, title) for anchor, (title, shown) in present.items() if shown]


# Words.


def lead(params: Params) -> str:
    return (
        f"Restorations of {params.evaluate.n_images} {params.evaluate.split} images at "
        f"{params.data.image_size}×{params.data.image_size} pixels from incomplete linear measurements y = Hx + n. The "
        f"diffusion models were trained on {params.train.images:,} images each by one recipe; they differ in what they "
        "are told about H."
    )


def facts(params: Params) -> list[tuple[str, str]]:
    """What was run, on what."""
    manifest = manifest_of("invfusion")
    sampler = params.evaluate.sampler
    return [
        ("Dataset", f"{params.data.name}, digest {str(manifest.get('data_digest', 'unknown'))[:12]}"),
        ("Code", f"revision {short_revision(manifest)}"),
        ("Seed", str(params.seed)),
        ("Trained on", ", ".join(trained_kinds(params))),
        ("Measurement noise", "none" if params.evaluate.noise.is_absent else params.evaluate.noise.describe()),
        ("Sampler", f"{sampler.kind.capitalize()}, {sampler.n_steps} steps"),
    ]


def short_revision(manifest: Mapping[str, Any]) -> str:
    """A commit as people read it; `-dirty` stays visible."""
    commit, dash, dirty = str(manifest.get("git_revision", "unknown")).partition("-")
    return commit[:10] + dash + dirty


def manifest_of(model: str) -> dict[str, Any]:
    path = MODELS / model / "manifest.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def models() -> list[dict[str, str]]:
    """One line per trained model that is on disk."""
    names = {"unconditional": "Unconditional", "palette": "Palette", "invfusion": "InvFusion", "mmse": "distilled MMSE"}
    return [
        {
            "name": {**names, "nppc": "NPPC"}[model],
            "knows": knows,
            "parameters": count_of(model, "n_parameters"),
            "images": count_of(model, "nimg"),
        }
        for model, knows in KNOWS.items()
        if (MODELS / model / "model.safetensors").exists()
    ]


def count_of(model: str, name: str) -> str:
    """A count of a model's manifest, such as its parameters, or a dash where it is not there."""
    manifest = manifest_of(model)
    return f"{manifest[name]:,}" if name in manifest else "–"


def verdict(orderings: Sequence[Claim]) -> str:
    """One sentence that a hurried reader takes away."""
    if not orderings:
        return "This evaluation holds no comparison of InvFusion with Palette."
    clear = sum(claim.holds and claim.clear for claim in orderings)
    ahead = sum(claim.holds for claim in orderings)
    behind = [f"{c.quantity.removesuffix('·10³')} on {c.degradation.lower()}" for c in orderings if not c.holds]
    exceptions = f" It is not ahead in: {'; '.join(behind)}." if behind else ""
    return (
        f"InvFusion is ahead of Palette in {ahead} of {len(orderings)} comparisons; in {clear} of these the 95% "
        f"intervals do not overlap.{exceptions}"
    )


def notes(records: Sequence[Record]) -> list[str]:
    """What could not be measured, and on which measurements the rest was."""
    hashes = {tables.name_of(r["degradation"]): r["measurements_sha256"] for r in records if r["measurements_sha256"]}
    frozen = ", ".join(f"{name} {value[:12]}" for name, value in hashes.items())
    return [*tables.reasons(records), *([f"Frozen measurements (sha256): {frozen}."] if frozen else [])]


def paper_line(paper: Paper) -> str:
    if paper.dataset:
        return f"This dataset is the paper's {paper.dataset}: its numbers stand below ours where they mean the same."
    return (
        "The paper reports no number for this dataset and noise. The table below is for orientation: the ordering of "
        "methods should be the same, the values cannot be."
    )


# Tables.


def trained_kinds(params: Params) -> list[str]:
    """The families of degradation that the conditional models were trained on."""
    members = getattr(params.degradation, "members", [params.degradation])
    return [tables.name_of(member.kind).lower() for member in members]


def split_degradations(params: Params, records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """The evaluated degradations: those the models were trained on, and the others."""
    found = tables.ordered({r["degradation"] for r in records} - set(tables.UNCONDITIONAL), tables.DEGRADATIONS)
    kinds = trained_kinds(params)
    trained = [name for name in found if tables.name_of(name).lower() in kinds]
    return trained, [name for name in found if name not in trained]


def restoration_tables(
    records: Sequence[Record], trained: Sequence[str], unseen: Sequence[str], paper: Paper
) -> list[tuple[Table, str]]:
    """The main tables, then what is left of the metrics."""
    main = [r for r in records if tables.is_main(r, records)]
    further = [r for r in records if not tables.is_main(r, records) and not r["metric"].startswith("nppc")]
    shapes = [
        (main, trained, "<b>Degradations of the training distribution</b>, the shape of the paper's Tables 1 and 2."),
        (main, unseen, "<b>Degradations that did not appear in training</b>, the shape of the paper's Table 3."),
        (further, trained, "<b>Further metrics</b>, degradations of the training distribution."),
        (further, unseen, "<b>Further metrics</b>, degradations that did not appear in training."),
    ]
    made = [(tables.restoration_table(chosen, names, paper), caption) for chosen, names, caption in shapes]
    return [(table, caption) for table, caption in made if table.column_groups]


def nppc_table(records: Sequence[Record]) -> Table | None:
    """How well the predicted directions and deviations fit the actual errors."""
    chosen = [r for r in records if r["metric"].startswith("nppc")]
    table = tables.restoration_table(chosen, list(dict.fromkeys(r["degradation"] for r in chosen)), None)
    return table if table.column_groups else None


def generation_table(records: Sequence[Record], paper: Paper) -> Table | None:
    degradations = list(dict.fromkeys(r["degradation"] for r in records if tables.is_number(r["value"])))
    return tables.restoration_table(records, degradations, paper) if degradations else None


# Figures.


def psnr_figure(records: Sequence[Record], degradations: Sequence[str]) -> Picture | None:
    """PSNR with intervals of everything that restores."""
    chosen = [
        r for r in records if r["metric"] == "psnr" and tables.has_interval(r) and r["degradation"] in degradations
    ]
    methods = tables.ordered({r["method"] for r in chosen}, tables.METHODS)
    points = [
        figures.Point(
            tables.name_of(d), r["method"].split()[0].lower(), tables.label(m), r["value"], r["low"], r["high"]
        )
        for d in degradations
        for m in methods
        for r in chosen
        if (r["degradation"], r["method"]) == (d, m)
    ]
    if not points:
        return None
    figures.intervals(FIGURES / "psnr.png", points, "PSNR (dB)")
    return Picture(FIGURES / "psnr.png", "PSNR with 95% intervals", "Further right is closer to the truth.")


def calibration_figure(degradations: Sequence[str]) -> Picture | None:
    """Whether the spread of the samplers' draws, and the deviations of NPPC, can be trusted."""
    curves = json.loads(CALIBRATION.read_text()) if CALIBRATION.exists() else []
    panels = {
        tables.name_of(d): {tables.label(c["method"]): c for c in curves if c["degradation"] == d}
        for d in degradations
        if any(c["degradation"] == d for c in curves)
    }
    if not panels:
        return None
    figures.calibration(FIGURES / "calibration.png", panels)
    return Picture(FIGURES / "calibration.png", "Calibration", "On the diagonal, uncertainty is what it claims to be.")


def galleries(degradations: Sequence[str]) -> list[Picture]:
    """One figure per degradation that has restorations on disk."""
    found = []
    for degradation in (d for d in degradations if (RESTORATIONS / d).is_dir()):
        file = f"gallery-{degradation}.png"
        pictures.gallery(FIGURES / file, RESTORATIONS, degradation)
        found.append(Picture(FIGURES / file, tables.name_of(degradation), ""))
    return found


def nppc_figure(degradations: Sequence[str]) -> Picture | None:
    """The posterior mean, its principal directions, and the mean moved along each."""
    degradation = next((d for d in degradations if (RESTORATIONS / d / "nppc.safetensors").exists()), None)
    if degradation is None:
        return None
    pictures.components(FIGURES / "nppc.png", RESTORATIONS / degradation, "NPPC")
    kind = tables.name_of(degradation).lower()
    return Picture(
        FIGURES / "nppc.png", f"Posterior principal components, {kind}", "σ below each direction, in [-1, 1] units."
    )


def curve_figure() -> Picture | None:
    """The logged losses: diffusion models share a panel, the distilled models have one each."""
    panels: dict[str, dict[str, tuple[figures.Array, figures.Array]]] = {}
    titles = {"mmse": "distilled MMSE loss", "nppc": "NPPC loss"}
    for model in KNOWS:
        curve = read_curve(LOGS / f"{model}.csv")
        if curve:
            panels.setdefault(titles.get(model, "diffusion loss"), {})[model] = curve
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
