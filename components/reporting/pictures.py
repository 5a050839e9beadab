"""Pictures of restorations that `components/evaluation/evaluate.py` left on disk."""

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from components.paths import file_name
from components.reporting import figures, tables
from components.reporting.figures import Tiles


def gallery(path: Path, restorations: Path, degradation: str, drawn: str | None) -> Path:
    """Rows are held-out images; columns are the truth, the measurement, and every method, in the evaluation's order.

    drawn: the method of which another draw is shown too, and where its draws differ.
    """
    folder = restorations / degradation
    truth = load_file(folder / "truth.safetensors")["images"]
    columns = [Tiles("Truth", list(truth / 255)), measured_column(folder)]
    shown: dict[str, Any] = json.loads((restorations / "index.json").read_text())
    for method in (name for name in shown[degradation]["methods"] if name != "H_pinv y"):
        found = load_file(folder / f"{file_name(method)}.safetensors")
        columns += method_columns(method, found, truth, shows_draw=method == drawn)
    if drawn is not None:
        columns += spread_column(drawn, folder / f"{file_name(drawn)}.safetensors")
    return figures.gallery(path, columns)


def samples(path: Path, restorations: Path, methods: list[str]) -> Path:
    """Images that were generated from nothing, one column per method."""
    columns = [
        Tiles(
            wrapped(tables.label(method)),
            list(load_file(restorations / f"{file_name(method)}.safetensors")["images"] / 255),
        )
        for method in methods
    ]
    return figures.gallery(path, columns)


def components(path: Path, folder: Path, method: str) -> Path:
    """The posterior mean, its principal directions, and the mean moved along each."""
    found = load_file(folder / f"{file_name(method)}.safetensors")
    columns = [Tiles("Truth", list(load_file(folder / "truth.safetensors")["images"] / 255))]
    columns.append(measured_column(folder))
    columns.append(Tiles("mean", list(unit(found["mean"]))))
    for k in range(found["components"].shape[1]):
        columns += direction_columns(k, found["mean"], found["components"][:, k], found["stds"][:, k])
    return figures.gallery(path, columns)


def measured_column(folder: Path) -> Tiles:
    """The measurements as images."""
    return Tiles("H†y", list(load_file(folder / "measured.safetensors")["images"] / 255))


def wrapped(title: str) -> str:
    """A title in lines that fit above a picture."""
    return "\n".join(textwrap.wrap(title, 14))


def method_columns(
    method: str, found: Mapping[str, figures.Array], truth: figures.Array, *, shows_draw: bool
) -> list[Tiles]:
    """The restorations of one method, where it shows them also a second draw of each."""
    diverged, title = found.get("diverged", np.zeros(len(truth), bool)), wrapped(tables.label(method))
    columns = [restored(title, found["images"], truth, diverged)]
    if shows_draw and "draws" in found:
        columns.append(restored(f"{title}\nanother draw", found["draws"][:, 0], truth, diverged))
    return columns


def spread_column(method: str, path: Path) -> list[Tiles]:
    """Where the draws of a method differ: their standard deviation, mean over the channels."""
    found = load_file(path) if path.exists() else {}
    if "std" not in found:
        return []
    std = found["std"].mean(axis=1, keepdims=True)
    top = max(float(std.max()), 1e-6)
    return [Tiles(f"{tables.label(method)} std\n0 to {top:.2g}", list(std / top))]


def restored(title: str, images: figures.Array, truth: figures.Array, diverged: figures.Array) -> Tiles:
    """Images uint8 (g, C, H, W) with their PSNR."""
    error = np.square(images.astype(np.float64) - truth).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / np.maximum(error, 1e-9))
    captions = [
        "diverged" if lost else "exact" if e == 0 else f"{p:.1f}"
        for p, e, lost in zip(psnr, error, diverged, strict=True)
    ]
    return Tiles(title, list(images / 255), captions)


def direction_columns(k: int, mean: figures.Array, direction: figures.Array, std: figures.Array) -> list[Tiles]:
    """One direction, contrast enhanced, between the mean moved back and forth along it by two standard deviations."""
    peak = np.abs(direction).max(axis=(1, 2, 3), keepdims=True)
    step = 2 * std[:, None, None, None] * direction
    return [
        Tiles("mean − 2σw" + subscript(k), list(unit(mean - step))),
        Tiles("w" + subscript(k), list(0.5 + direction / np.maximum(peak, 1e-9) / 2), [f"σ = {s:.2g}" for s in std]),
        Tiles("mean + 2σw" + subscript(k), list(unit(mean + step))),
    ]


def subscript(k: int) -> str:
    return str(k + 1).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def unit(x: figures.Array) -> figures.Array:
    """[-1, 1] to [0, 1] for display."""
    return np.clip(x / 2 + 0.5, 0, 1)
