"""reports/oracle.html: what the oracle found, as tables and plots."""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from components.oracle.records import Record, Results
from components.params import Params
from components.reporting.figures import (
    COLOURS,
    FAINT,
    INK,
    STYLE,
    TURNS,
    Tiles,
    calibration,
    gallery,
    one_legend,
    save,
)
from components.reporting.pages import render
from invfusion.oracle import LIMIT, GaussianMixture
from invfusion.rng import generators

PAGE = Path("reports/oracle.html")
FIGURES = Path("reports/oracle_figures")
N_SHOWN = 12
DETAILS = ("sliced_wasserstein", "mean_error", "covariance_error", "spread", "coverage_90", "tarp_gap")
REFERENCES = ("exact", "decoy_narrow", "decoy_wide", "decoy_shifted")


def write_page(params: Params, results: Results, priors: Mapping[str, GaussianMixture]) -> Path:
    """Draw the figures and write the page; returns its path."""
    of_samplers = [r for r in results["records"] if r["judgement"] == "sampler"]
    of_models = [r for r in results["records"] if r["judgement"] == "model"]
    content = {
        "params": params,
        "limit": LIMIT,
        "prior_figure": _prior_figure(priors),
        "sampler_tables": [_ratio_table(name, of_samplers) for name in priors],
        "details": [_detail_row(rows) for rows in _grouped(of_samplers, _method_key).values()],
        "details_names": DETAILS,
        "distance_figure": _distances(of_samplers),
        "sampler_curves": _calibration("samplers", [c for c in results["curves"] if c["judgement"] == "sampler"]),
        "excess_figure": _excess(of_models),
        "excess_rows": _final_excess(of_models),
        "model_rows": [
            _detail_row(rows) for key, rows in _grouped(of_models, _method_key).items() if _has(rows, DETAILS[0])
        ],
        "model_curves": _calibration("models", [c for c in results["curves"] if c["judgement"] == "model"]),
        "nppc_rows": [_shown(r) for r in of_models if r["metric"].startswith("nppc")],
        "nppc_figure": _deviations([c for c in results["curves"] if "predicted" in c]),
    }
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render("oracle.html.j2", content))
    return PAGE


# ---------------------------------------------------------------------------------------------------------------------
# Tables.


def label(record: Record) -> str:
    """How a method is called: its name, with the settings that differ from the defaults."""
    if record["method"] in REFERENCES or record["judgement"] == "model":
        return str(record["method"])
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items() if name != "kind")
    return f"{record['method']} ({settings})" if settings else str(record["method"])


def cell_of(record: Record) -> str:
    """The column of a record."""
    return f"{record['degradation']}, σ {record['sigma_y']:g}"


def _method_key(record: Record) -> tuple[Any, ...]:
    return record["prior"], cell_of(record), label(record), record["nfe"]


def _grouped(records: Sequence[Record], key: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _has(records: Sequence[Record], metric: str) -> bool:
    return any(r["metric"] == metric for r in records)


def _shown(record: Record) -> Record:
    """A record with its interval and ratio as text."""
    value = "–" if record["value"] is None else f"{record['value']:.3g}"
    interval = "" if record["low"] is None else f"{record['low']:.3g} – {record['high']:.3g}"
    return record | {"text": value, "interval": interval}


def _ratio_table(prior: str, records: Sequence[Record]) -> dict[str, Any]:
    """Sliced Wasserstein distance over its floor: a row for each method, a column for each cell."""
    chosen = [r for r in records if r["prior"] == prior and r["metric"] == "sliced_wasserstein"]
    columns = list(dict.fromkeys(map(cell_of, chosen)))
    rows = _grouped(chosen, label)
    return {
        "prior": prior,
        "columns": columns,
        "rows": [
            {
                "label": name,
                "nfe": next((r["nfe"] for r in found if r["nfe"] is not None), "–"),
                "cells": [_ratio_cell([r for r in found if cell_of(r) == column]) for column in columns],
            }
            for name, found in rows.items()
        ],
    }


def _ratio_cell(found: Sequence[Record]) -> dict[str, Any]:
    if not found or found[0]["ratio"] is None:
        return {"text": "–", "interval": found[0].get("unavailable", "") if found else "", "passes": False}
    r = found[0]
    interval = f"{r['low'] / r['floor']:.2f} – {r['high'] / r['floor']:.2f}"
    return {"text": f"{r['ratio']:.2f}", "interval": interval, "passes": r["ratio"] <= LIMIT}


def _detail_row(records: Sequence[Record]) -> dict[str, Any]:
    """All numbers of one method on one cell."""
    by_metric = {r["metric"]: r for r in records}
    values = [
        "–" if name not in by_metric or by_metric[name]["value"] is None else f"{by_metric[name]['value']:.3f}"
        for name in DETAILS
    ]
    floors = [
        "" if name not in by_metric or by_metric[name]["floor"] is None else f"{by_metric[name]['floor']:.3f}"
        for name in DETAILS
    ]
    first = records[0]
    return {
        "prior": first["prior"],
        "cell": cell_of(first),
        "label": label(first),
        "nfe": first["nfe"],
        "cells": list(zip(values, floors, strict=True)),
    }


def _final_excess(records: Sequence[Record]) -> list[Record]:
    """Each model's excess at the end of its training."""
    chosen = [r for r in records if r["metric"] == "excess_mse"]
    groups = _grouped(chosen, lambda r: (r["method"], r["width"], cell_of(r)))
    return [_shown(max(group, key=lambda r: r["images"])) for group in groups.values()]


# ---------------------------------------------------------------------------------------------------------------------
# Figures.


def _figure(file: str) -> str:
    """A figure as a data URI, by which the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode((FIGURES / file).read_bytes()).decode()


def _prior_figure(priors: Mapping[str, GaussianMixture]) -> list[tuple[str, str]]:
    """Draws of every prior."""
    found = []
    for name, prior in priors.items():
        drawn = prior.sample(generators(0, "oracle/shown", range(N_SHOWN)))
        pixels = ((drawn + 1) / 2).float().numpy()
        gallery(FIGURES / f"prior_{name}.png", [Tiles("", [image]) for image in pixels])
        found.append((name, _figure(f"prior_{name}.png")))
    return found


def _panels(n_columns: int, n_rows: int, height: float = 2.5) -> tuple[Any, Any]:
    size = (2.9 * n_columns + 1.6, height * n_rows)
    return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained", sharex="row")


def _colours(names: Sequence[str]) -> dict[str, str]:
    turns = iter(TURNS * 4)
    return {name: COLOURS.get(name) or next(turns) for name in names}


def _distances(records: Sequence[Record]) -> str | None:
    """Distance over the floor against network calls, a panel for each cell of each prior."""
    usable = [r for r in records if r["metric"] == "sliced_wasserstein" and r["ratio"] and r["nfe"]]
    if not usable:
        return None
    rows, columns = (list(dict.fromkeys(key(r) for r in usable)) for key in (lambda r: r["prior"], cell_of))
    colours = _colours(list(dict.fromkeys(r["method"] for r in usable)))
    with plt.rc_context(STYLE):
        figure, axes = _panels(len(columns), len(rows))
        for i, prior in enumerate(rows):
            for j, column in enumerate(columns):
                chosen = [r for r in usable if r["prior"] == prior and cell_of(r) == column]
                _distance_panel(axes[i, j], chosen, colours)
                axes[i, j].set_title(f"{prior}: {column}", size=8)
            axes[i, 0].set_ylabel("distance / floor")
        for axis in axes[-1]:
            axis.set_xlabel("network calls")
        one_legend(figure, axes)
        save(figure, FIGURES / "distances.png")
    return _figure("distances.png")


def _distance_panel(axes: Axes, records: Sequence[Record], colours: Mapping[str, str]) -> None:
    for method, found in _grouped(records, lambda r: r["method"]).items():
        points = sorted((r["nfe"], r["ratio"], r["low"] / r["floor"], r["high"] / r["floor"]) for r in found)
        x, y, low, high = np.array(points).T
        axes.plot(x, y, "o-", color=colours[method], markersize=3.5, linewidth=1.2, label=method)
        axes.vlines(x, low, high, color=colours[method], linewidth=1)
    axes.axhspan(0.9, LIMIT, color="#2c7a55", alpha=0.15, linewidth=0)
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.set(xscale="log", yscale="log")
    axes.grid()


def _calibration(name: str, curves: Sequence[Record]) -> str | None:
    """The calibration curves of the first prior at its highest noise level, each method at its most steps."""
    usable = [c for c in curves if "tarp" in c]
    if not usable:
        return None
    prior, sigma_y = usable[0]["prior"], max(c["sigma_y"] for c in usable)
    usable = [c for c in usable if c["prior"] == prior and c["sigma_y"] == sigma_y]
    panels = {
        column: {
            method: max(same, key=lambda c: c["nfe"]) for method, same in _grouped(found, lambda c: c["method"]).items()
        }
        for column, found in _grouped(usable, cell_of).items()
    }
    calibration(FIGURES / f"{name}.png", panels, dotted=REFERENCES)
    return _figure(f"{name}.png")


def _excess(records: Sequence[Record]) -> str | None:
    """Excess risk against training images, a panel for each family."""
    chosen = [r for r in records if r["metric"] == "excess_mse" and r["value"] is not None]
    if not chosen:
        return None
    panels = _grouped(chosen, lambda r: r["degradation"])
    names = list(dict.fromkeys(f"{r['method']}, width {r['width']}" for r in chosen))
    colours = dict(zip(names, TURNS, strict=False))
    with plt.rc_context(STYLE):
        figure, axes = _panels(len(panels), 1, 3.0)
        for panel, (degradation, found) in zip(axes[0], panels.items(), strict=True):
            for (method, width, sigma), line in _grouped(
                found, lambda r: (r["method"], r["width"], r["sigma_y"])
            ).items():
                name = f"{method}, width {width}"
                points = sorted((r["images"], r["value"] - 1, r["low"] - 1, r["high"] - 1) for r in line)
                x, y, low, high = np.array(points).T
                shown = f"{name}, σ {sigma:g}" if degradation == "denoising" else name
                panel.plot(x, y, "o-", color=colours[name], markersize=3.5, linewidth=1.2, label=shown)
                panel.vlines(x, low, high, color=colours[name], linewidth=1)
            panel.axhline(0.05, color=FAINT, linewidth=0.8, linestyle="--")
            panel.set(xscale="log", yscale="log", xlabel="training images")
            panel.set_title(degradation, size=9)
            panel.grid()
        axes[0, 0].set_ylabel("excess risk, MSE / Bayes MSE - 1")
        one_legend(figure, axes)
        save(figure, FIGURES / "excess.png")
    return _figure("excess.png")


def _deviations(curves: Sequence[Record]) -> str | None:
    """Predicted against exact standard deviations along the predicted directions."""
    if not curves:
        return None
    with plt.rc_context(STYLE):
        figure, axes = _panels(1, 1, 3.4)
        for curve in curves:
            axes[0, 0].plot(curve["actual"], curve["predicted"], ".", color=COLOURS["nppc"], markersize=3, alpha=0.5)
        limit = max(max(c["actual"] + c["predicted"]) for c in curves)
        axes[0, 0].plot([0, limit], [0, limit], color=INK, linewidth=0.8)
        axes[0, 0].set(xlabel="exact deviation", ylabel="predicted deviation", aspect="equal")
        axes[0, 0].grid()
        save(figure, FIGURES / "deviations.png")
    return _figure("deviations.png")
