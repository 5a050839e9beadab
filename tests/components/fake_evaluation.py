"""What a small run leaves on disk, made up but in the true format, to test report and registration alone."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from components.paths import file_name
from components.records import Record, write_records

FAMILIES = ("strided_motion_blur", "patch_inpainting", "matrix", "box_outpainting", "box_inpainting")
PSNR = {
    "H_pinv y": 9.0,
    "DDRM": 12.0,
    "Palette": 13.5,
    "InvFusion": 16.0,
    "Palette MMSE": 16.1,
    "InvFusion MMSE": 18.7,
    "MMSE": 18.9,
}
SHIFT = {
    "strided_motion_blur": 3.0,
    "patch_inpainting": -1.5,
    "matrix": -0.4,
    "box_outpainting": 1.0,
    "box_inpainting": 6.0,
}
NFE = {"H_pinv y": 0, "DDRM": 25, "Palette": 35, "InvFusion": 35, "Unconditional": 35}
NO_WEIGHTS = "no Inception weights at weights/inception-2015-12-05.pt"
TRAINED = {"unconditional": 51200, "palette": 51200, "invfusion": 51200, "mmse": 6400, "nppc": 6400}


def record(method: str, degradation: str, metric: str, value: float | None, spread: float = 0.03) -> Record:
    """One record of reports/evaluation.json."""
    return Record(
        method=method,
        degradation=degradation,
        metric=metric,
        value=value,
        low=None if value is None else value * (1 - spread),
        high=None if value is None else value * (1 + spread),
        n=180,
        nfe=NFE.get(method, 1),
        measurements_sha256=None if degradation == "unconditional" else degradation.encode().hex()[:12] * 5,
        unavailable=NO_WEIGHTS if value is None else "",
    )


def records(**changes: Mapping[str, float]) -> list[Record]:
    """A whole evaluation; `changes` maps a method to PSNR gains by degradation."""
    made = []
    for degradation in FAMILIES:
        for method, base in PSNR.items():
            psnr = base + SHIFT[degradation] + changes.get(method, {}).get(degradation, 0.0)
            made.append(record(method, degradation, "psnr", psnr))
            consistency = {"H_pinv y": 0.0, "DDRM": 3.1e-13, "InvFusion": 2.4e-4, "Palette": 0.021}.get(method, 1.7e-3)
            made.append(record(method, degradation, "consistency_mse", consistency, 0.08))
            if NFE.get(method, 0) > 1:
                made.append(record(method, degradation, "coverage_90", 0.88))
                made.append(record(method, degradation, "std_ratio", 0.93))
                made += [record(method, degradation, m, 40 / base, 0.1) for m in ("fd_pixel8x8", "cfd_pixel8x8")]
                made.append(record(method, degradation, "kd_pixel8x8", 0.31 / base, 0.1))
                made += [record(method, degradation, m, None) for m in ("fid", "cfid", "kid", "lpips")]
    made.append(record("NPPC", "box_inpainting", "psnr", 24.6))
    made.append(record("NPPC", "box_inpainting", "nppc_captured_energy", 0.413))
    made.append(record("NPPC", "box_inpainting", "nppc_std_ratio", 1.07))
    for i, method in enumerate(("Unconditional", "Palette", "InvFusion")):
        made.append(record(method, "unconditional", "fd_pixel8x8", 2.4 - 0.2 * i, 0.1))
        made.append(record(method, "unconditional", "fid", None))
    return made


def write_scores(folder: Path, n: int = 180) -> None:
    """artifacts/evaluation/scores: PSNR and consistency of single images around the records' values, alike for all."""
    shared = np.random.default_rng(2).standard_normal(n)
    own = np.random.default_rng(3)
    scores: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for r in records():
        if r.metric in ("psnr", "consistency_mse") and r.degradation != "unconditional" and r.value is not None:
            values = r.value * (1 + 0.2 * (shared - shared.mean()))
            wobble = own.standard_normal(n)
            values = values + 0.01 * r.value * (wobble - wobble.mean())
            scores.setdefault((r.degradation, r.method), {})[r.metric] = values
    for (degradation, method), content in scores.items():
        place = folder / degradation
        place.mkdir(parents=True, exist_ok=True)
        save_file(content, place / f"{file_name(method)}.safetensors")


def digit(label: int, size: int) -> np.ndarray:
    """A blob (3, size, size) float in [-1, 1] that differs from label to label."""
    y, x = np.mgrid[0:size, 0:size] / size
    phase = label * 0.7
    shape = np.exp(-(((x - 0.5 - 0.2 * np.cos(phase)) ** 2 + (y - 0.5 - 0.2 * np.sin(phase)) ** 2) / 0.03))
    colour = np.array([np.cos(phase), np.cos(phase + 2), np.cos(phase + 4)]) * 0.5 + 0.5
    return (colour[:, None, None] * shape * 2 - 1).astype(np.float32)


def to_uint8(x: np.ndarray) -> np.ndarray:
    return np.clip(x * 127.5 + 128, 0, 255).astype(np.uint8)


def write_restorations(folder: Path, n: int, size: int) -> None:
    """artifacts/evaluation/restorations."""
    random = np.random.default_rng(0)
    truth = np.stack([digit(i, size) for i in range(n)])
    for degradation in FAMILIES:
        place = folder / degradation
        place.mkdir(parents=True, exist_ok=True)
        for name in ("truth", "measured"):
            save_file({"images": to_uint8(truth)}, place / f"{name}.safetensors")
        for method, quality in PSNR.items():
            noise = random.standard_normal(truth.shape).astype(np.float32) * 10 ** (-quality / 20)
            content = {"images": to_uint8(truth + noise)}
            if method in ("Palette", "InvFusion"):
                draws = truth[:, None] + random.standard_normal((n, 3, 3, size, size)).astype(np.float32) * 0.2
                content |= {"draws": to_uint8(draws), "std": draws.std(axis=1).astype(np.float32)}
            save_file(content, place / f"{file_name(method)}.safetensors")
    directions = random.standard_normal((n, 3, 3, size, size)).astype(np.float32)
    directions /= np.linalg.norm(directions.reshape(n, 3, -1), axis=2)[..., None, None, None]
    stds = np.tile(np.array([6.0, 4.0, 2.0], np.float32), (n, 1))
    nppc = {"images": to_uint8(truth), "mean": truth, "components": directions, "stds": stds}
    save_file(nppc, folder / "box_inpainting" / "nppc.safetensors")
    index = {d: {"methods": [*PSNR, *(["NPPC"] if d == "box_inpainting" else [])]} for d in FAMILIES}
    (folder / "index.json").write_text(json.dumps(index))


def write_calibration(file: Path) -> None:
    """Curves of two samplers on every degradation, and NPPC's directions on one."""
    levels = np.linspace(0, 1, 41)
    line = {"tarp": list(levels**1.2), "coverage": list(levels**1.1), "predicted": [0.1, 0.3], "actual": [0.2, 0.3]}
    curves = [{"degradation": d, "method": m, **line} for d in FAMILIES for m in ("Palette", "InvFusion")]
    curves.append({"degradation": "box_inpainting", "method": "NPPC", "predicted": [6.0, 4.0], "actual": [5.5, 4.2]})
    file.write_text(json.dumps(curves))


def write_models(folder: Path) -> None:
    """artifacts/models: folders as the training leaves them, with tiny weights."""
    for model, nimg in TRAINED.items():
        (folder / model).mkdir(parents=True, exist_ok=True)
        save_file({"w": np.zeros((17, 241), np.float32)}, folder / model / "model.safetensors")
        (folder / model / "config.json").write_text(json.dumps({"variant": model}))
        manifest = {
            "n_parameters": 4097,
            "nimg": nimg,
            "git_revision": "0123456789abcdef",
            "data_digest": "feed" * 16,
            "noise": {"kind": "gaussian", "sigma_y": [0.0, 0.2]},
        }
        (folder / model / "manifest.json").write_text(json.dumps(manifest))


def write_logs(folder: Path) -> None:
    """artifacts/logs: one curve per model."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for i, (model, nimg) in enumerate(TRAINED.items()):
        with (folder / f"{model}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["nimg", "loss"])
            for step in range(640, nimg + 1, 640 if nimg > 10000 else 64):
                writer.writerow([step, (1 + i * 0.1) * (300 / step) ** 0.4 + 0.05 * random.standard_normal()])


def write_run(folder: Path, size: int = 16, n: int = 4) -> None:
    """A whole run under `folder`."""
    write_records(records(), folder / "reports" / "evaluation.json")
    write_restorations(folder / "artifacts" / "evaluation" / "restorations", n, size)
    write_scores(folder / "artifacts" / "evaluation" / "scores")
    write_calibration(folder / "artifacts" / "evaluation" / "calibration.json")
    write_models(folder / "artifacts" / "models")
    write_logs(folder / "artifacts" / "logs")
