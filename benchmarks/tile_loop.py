"""Restoring a large photograph: seconds per megapixel and memory, against a plain loop over tiles.

    python -m benchmarks.tile_loop

The loop restores overlapping tiles one by one with the same model, each as a picture of its own by the part of the
measurement that it has, and blends them. Both run in turn with one thread; seconds are the processor's. Writes
benchmarks/results/tile_loop.json and its table of docs/performance.md.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.document import PERFORMANCE, update
from benchmarks.photographs import half
from benchmarks.records import Record, rounded
from benchmarks.scale.curves import MIB, peak_mib
from benchmarks.scale.images import images
from invfusion import rng
from invfusion.operators import LinearOperator, Measurement
from invfusion.restoration import load_model, restore, tasks
from invfusion.restoration.requests import gaussian_kernel
from invfusion.restoration.tiles import TILE, blended, factor_of, fitted, local_rule

OUTPUT = Path("benchmarks/results/tile_loop.json")
# Rows and columns of the pictures.
SIZES = ((768, 1024), (1536, 1024))
BLUR_SIGMA = 1.6

log = logging.getLogger("benchmarks")


def cases() -> dict[str, tuple[tasks.Task, float]]:
    """What happened to a picture, and the noise."""
    return {
        "noise": (tasks.denoising(), 0.1),
        "half of the pixels missing": (tasks.inpainting(half(torch.Size((1, 1)))), 0.0),
        "Gaussian blur": (tasks.deblurring(gaussian_kernel(BLUR_SIGMA), "valid"), 0.01),
        "reduced x2": (tasks.enlarging(2, "bicubic"), 0.005),
    }


def measured(name: str, size: tuple[int, int]) -> Measurement:
    """A made-up picture of about this size, measured."""
    task, sigma_y = cases()[name]
    height, width = size
    if name.startswith("half"):
        task = tasks.inpainting(half(torch.Size(size)))
    shape = task.measured_shape((3, height, width))
    operator = task.operator_for(shape)
    x = images(1, max(size))[..., : operator.image_shape[1], : operator.image_shape[2]]
    x = (x + 0.1 * rng.randn(tuple(x.shape[1:]), rng.generators(0, "benchmarks/texture", [0]))).clamp(-1, 1)
    noise = rng.randn(operator.measurement_shape, rng.generators(0, "benchmarks/noise", [0]))
    return Measurement.of(x, operator, sigma_y, noise)


def whole(measurement: Measurement, method: str) -> Tensor:
    """By the library."""
    return _restored(measurement.y, measurement.operator, measurement.sigma_y, method)


def tile_by_tile(measurement: Measurement, method: str) -> Tensor:
    """By the loop, with the tiles and the overlap that the library takes for networks of any kind."""
    rule, multiple = local_rule(measurement), factor_of(measurement)
    assert rule is not None
    height, width = measurement.operator.image_shape[1:]

    def of_tile(_: Tensor, window: object) -> Tensor:
        part = rule(measurement, window)  # type: ignore[arg-type]
        return _restored(part.y, part.operator, part.sigma_y, method)

    blank = torch.zeros(1, *measurement.operator.image_shape)
    return blended(blank, fitted(TILE, multiple, (height, width)), multiple, of_tile)


def _restored(y: Tensor, operator: LinearOperator, sigma_y: Tensor, method: str) -> Tensor:
    return restore(y, operator, load_model("photos"), sigma_y=sigma_y, method=method, progress=False).images


def measure(names: Sequence[str], sizes: Sequence[tuple[int, int]], methods: Sequence[str]) -> Iterator[Record]:
    """Each way once for each case, size and method, after a small picture to warm up."""
    ways: dict[str, Callable[[Measurement, str], Tensor]] = {"ours": whole, "loop": tile_by_tile}
    for name in names:
        whole(measured(name, (64, 64)), "mmse")
        for size in sizes:
            for method in methods:
                measurement = measured(name, size)
                megapixels = measurement.operator.image_shape[1] * measurement.operator.image_shape[2] / MIB
                record: Record = {"suite": "tile_loop", "case": name, "method": method, "size": list(size)}
                for way, run in ways.items():
                    with peak_mib() as peak:
                        start = time.process_time()
                        run(measurement, method)
                        seconds = time.process_time() - start
                    record[f"{way}_seconds_per_megapixel"] = rounded(seconds / megapixels)
                    record[f"{way}_mib"] = None if peak[0] is None else rounded(peak[0])
                record["ratio"] = rounded(record["loop_seconds_per_megapixel"] / record["ours_seconds_per_megapixel"])
                yield record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(cases()), default=list(cases()))
    parser.add_argument("--methods", nargs="+", default=["mmse", "sample"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    records: list[Record] = []
    for record in measure(options.only, SIZES, options.methods):
        log.info("%s", record)
        records.append(record)
        OUTPUT.write_text(
            json.dumps({"machine": {}, "load": rounded(os.getloadavg()[0]), "records": records}, indent=1)
        )
    update(PERFORMANCE, OUTPUT.parent)


if __name__ == "__main__":
    main()
