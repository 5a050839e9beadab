"""The report's pictures, drawn with matplotlib from plain arrays. The same arrays give the same PNG bytes."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from components.records import AnyRecord
from invfusion.training.recipes import RECIPES

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

Array = np.ndarray[Any, np.dtype[Any]]

INK, FAINT = "#1c2430", "#8a93a0"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": "#e4e7ec",
    "grid.linewidth": 0.6,
}
# One colour per trained model, the same in every figure: in the order of RECIPES.
PALETTE = (
    "#7a828e", "#c8642a", "#1f5fa8", "#00a0b0", "#d4a017", "#3c8d68", "#7d5ba6", "#8c2f39", "#5b7a2e", "#b0578d",
    "#2f4f6f", "#8a6d3b", "#4f9d9d",
)  # fmt: skip
COLOURS = dict(zip(RECIPES, cycle(PALETTE), strict=False))
# What other methods take in turn.
TURNS = ("#b3492a", "#2b9aa8", "#a8862b", "#5a6472", "#c2559d", "#4a6b2f", "#8a4f7d", "#6a8fd6", "#e0995e")
DPI = 130
NOTHING: Mapping[str, str | None] = {}


@dataclass(frozen=True)
class Tiles:
    """One column of a gallery: its title, and an image (C, H, W) in [0, 1] per row with an optional line below it."""

    title: str
    images: Sequence[Array]
    captions: Sequence[str] = ()


# Of each series: (x, value, low, high).
Lines = Mapping[str, Sequence[tuple[float, float, float, float]]]


@dataclass(frozen=True)
class Point:
    """A value with its interval, of one method in one group. model: the trained one that the method reads out."""

    group: str
    model: str | None
    series: str
    value: float
    low: float
    high: float


def gallery(path: Path, columns: Sequence[Tiles]) -> Path:
    """A grid with one row per image and one column per method; pixels stay square and sharp."""
    rows, n = len(columns[0].images), len(columns)
    captioned = any(column.captions for column in columns)
    # Twelve columns fill the page; fewer are drawn at the same size, so that pixels compare between figures.
    tile, gap, head, foot = 1.0, 0.07, 0.36, 0.17 if captioned else 0.0
    width, height = n * (tile + gap) - gap, head + rows * (tile + gap + foot) - gap
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height))
        for j, column in enumerate(columns):
            for i, image in enumerate(column.images):
                bottom = height - head - (i + 1) * tile - i * (gap + foot)
                axes = figure.add_axes((j * (tile + gap) / width, bottom / height, tile / width, tile / height))
                _tile(axes, image, column.captions[i] if column.captions else "")
            x = (j * (tile + gap) + tile / 2) / width
            figure.text(x, 1 - head / 2 / height, column.title, ha="center", va="center", size=8, linespacing=1.15)
        return save(figure, path)


def _tile(axes: Axes, image: Array, caption: str) -> None:
    pixels = np.clip(np.moveaxis(np.asarray(image), 0, -1), 0, 1)
    axes.imshow(
        pixels[..., 0] if pixels.shape[-1] == 1 else pixels, interpolation="nearest", cmap="magma", vmin=0, vmax=1
    )
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if caption:
        axes.set_xlabel(caption, size=7, color=FAINT, labelpad=2)


def intervals(path: Path, points: Sequence[Point], label: str) -> Path:
    """Values with their intervals, one line per method, one panel per group."""
    groups = list(dict.fromkeys(point.group for point in points))
    series = list(dict.fromkeys(point.series for point in points))
    with plt.rc_context(STYLE):
        size = (2.1 * len(groups) + 1.2, 0.32 * len(series) + 0.75)
        figure, axes = plt.subplots(1, len(groups), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for panel, group in zip(axes[0], groups, strict=True):
            for point in (p for p in points if p.group == group):
                y, colour = -series.index(point.series), COLOURS.get(point.model or "", INK)
                panel.plot([point.low, point.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
                panel.plot(point.value, y, "o", color=colour, markersize=4.5)
            panel.set_title(group, size=9)
            panel.set_xlabel(label, size=8)
            panel.grid(axis="x")
            panel.margins(x=0.12, y=0.1)
            panel.spines["left"].set_visible(False)
            panel.tick_params(left=False)
        axes[0, 0].set_yticks([-i for i in range(len(series))], series)
        return save(figure, path)


def curves(path: Path, panels: Mapping[str, Mapping[str, tuple[Array, Array]]]) -> Path:
    """Training curves, one panel per kind of loss: the logged values faintly, their running mean on top."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.5 * len(panels), 2.7), squeeze=False, layout="constrained"
        )
        for panel, (title, lines) in zip(axes[0], panels.items(), strict=True):
            for name, (nimg, loss) in lines.items():
                colour = COLOURS.get(name, INK)
                panel.plot(nimg, loss, color=colour, alpha=0.22, linewidth=0.8)
                panel.plot(nimg, running_mean(loss), color=colour, linewidth=1.6, label=name)
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel("training images")
            panel.set_title(title, size=9)
            panel.grid()
            panel.set_ylim(*_robust_range([loss for _, loss in lines.values()]))
            panel.legend(frameon=False, fontsize=8)
        return save(figure, path)


def calibration(
    path: Path,
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    dotted: Any = (),
    models: Mapping[str, str | None] = NOTHING,
) -> Path:
    """TARP's curve, the coverage of central intervals, and predicted against actual deviations where they are given: a
    column for each group, a line for each method with its `tarp`, `coverage`, `predicted` and `actual` values.

    models: as `colours_of` says.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    colours = colours_of(names, models)
    rows = 3 if any(line.get("predicted") for lines in panels.values() for line in lines.values()) else 2
    with plt.rc_context(STYLE):
        size = (2.5 * len(panels) + 1.6, 2.5 * rows)
        figure, axes = plt.subplots(rows, len(panels), figsize=size, squeeze=False, layout="constrained")
        for column, (title, lines) in zip(axes.T, panels.items(), strict=True):
            for name, line in lines.items():
                style: Any = {"color": colours[name], "linestyle": ":" if name in dotted else "-", "linewidth": 1.3}
                _calibration_lines(column, line, style | {"label": name})
            _frame(column)
            column[0].set_title(title, size=9)
        for panel, y in zip(
            axes[:, 0], ("TARP: truths covered", "pixels within interval", "actual deviation"), strict=False
        ):
            panel.set_ylabel(y)
        one_legend(figure, axes)
        return save(figure, path)


def _calibration_lines(column: Any, line: Mapping[str, Sequence[float]], style: Any) -> None:
    for panel, name in zip(column, ("tarp", "coverage"), strict=False):
        if line.get(name):
            panel.plot(np.linspace(0, 1, len(line[name])), line[name], **style)
    if len(column) > 2 and line.get("predicted"):
        column[2].plot(line["predicted"], line["actual"], "o", markersize=2.5, **style)


def colours_of(names: Sequence[str], models: Mapping[str, str | None]) -> dict[str, str]:
    """Of each series its own: that of its model for the first of a model.

    models: the trained model that a series is about, where it is not named after that.
    """
    turns, found = iter(TURNS * len(names)), dict[str, str]()
    for name in names:
        own = COLOURS.get(models.get(name, name) or "")
        found[name] = own if own and own not in found.values() else next(turns)
    return found


def _frame(column: Any) -> None:
    """The diagonal, which is calibrated, and the axes."""
    for panel, x in zip(column, ("credibility", "level", "predicted deviation"), strict=False):
        top = 1.0 if x != "predicted deviation" else max(panel.get_xlim()[1], panel.get_ylim()[1])
        panel.plot([0, top], [0, top], color=INK, linewidth=0.7)
        panel.set(xlabel=x, aspect="equal", xlim=(0, top), ylim=(0, top))
        panel.grid()


def one_legend(figure: Figure, axes: Any) -> None:
    """One legend for all panels, to their right."""
    entries: dict[str, Any] = {}
    for panel in axes.flat:
        entries |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside right upper", frameon=False, fontsize=8)


def points(
    records: Iterable[AnyRecord],
    x: Callable[[AnyRecord], float | None],
    y: Callable[[AnyRecord, float], float] = lambda _, value: value,
) -> list[tuple[float, float, float, float]]:
    """What `lines` draws of the records that have an interval, at x of each; y: what is drawn of its values."""
    return [
        (at, y(r, r.value), y(r, r.low), y(r, r.high))
        for r in records
        if (at := x(r)) is not None and r.value is not None and r.low is not None and r.high is not None
    ]


def lines(
    path: Path,
    panels: Mapping[tuple[str, str], Lines],
    x: str,
    *,
    log_y: bool | Collection[str] = False,
    level: float | Mapping[str, float] | None = None,
    band: tuple[float, float] | None = None,
    models: Mapping[str, str | None] = NOTHING,
) -> Path:
    """Values with their intervals over a logarithmic axis: one panel for each (row, column), one line for each series.

    log_y: whether values have one too, or the rows whose values do; level: drawn as a horizontal line, the same or one
    for each row; band: a range of values that is shaded; models: as `colours_of` says.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in panels)) for i in (0, 1))
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    colours = colours_of(names, models)
    with plt.rc_context(STYLE):
        size = (2.9 * len(columns) + 1.6, 2.3 * len(rows) + 0.5)
        figure, axes = plt.subplots(
            len(rows), len(columns), figsize=size, sharex="row", squeeze=False, layout="constrained"
        )
        for (row, column), series in panels.items():
            panel = axes[rows.index(row), columns.index(column)]
            for name, points in series.items():
                where, value, low, high = np.array(sorted(points), dtype=float).reshape(-1, 4).T
                panel.plot(where, value, "o-", color=colours[name], markersize=3.5, linewidth=1.3, label=name)
                panel.vlines(where, low, high, color=colours[name], linewidth=1)
            if band is not None:
                panel.axhspan(*band, color="#2c7a55", alpha=0.15, linewidth=0)
            wanted = level.get(row) if isinstance(level, Mapping) else level
            if wanted is not None:
                panel.axhline(wanted, color=FAINT, linewidth=0.8, linestyle="--")
            is_log = log_y if isinstance(log_y, bool) else row in log_y
            panel.set(xscale="log", yscale="log" if is_log else "linear")
            found = _apart([point[0] for points in series.values() for point in points])
            panel.set_xticks(found, [f"{value:,.0f}" for value in found], size=7)
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.grid()
            panel.set_title(column if row == rows[0] else "", size=9)
            panel.set_ylabel(row if column == columns[0] else "", size=8)
            panel.set_xlabel(x if row == rows[-1] else "", size=8)
        one_legend(figure, axes)
        return save(figure, path)


def _apart(values: Sequence[float]) -> list[float]:
    """Those of positive values that a logarithmic axis has room to label: each 1.6 times the one before, at least."""
    chosen: list[float] = []
    for value in sorted(set(values)):
        if not chosen or value >= 1.6 * chosen[-1]:
            chosen.append(value)
    return chosen


def running_mean(values: Array, share: float = 0.06) -> Array:
    """Mean over a centred window that is a share of the curve's length, shortened at both ends; (N,) to (N,)."""
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((total[stop] - total[start]) / (stop - start))


def _robust_range(losses: Sequence[Array]) -> tuple[float, float]:
    """Limits that keep the first, huge losses from flattening the rest."""
    values = np.concatenate([np.asarray(loss)[len(loss) // 50 :] for loss in losses])
    low, high = np.quantile(values, [0.0, 0.985])
    margin = 0.06 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return path
