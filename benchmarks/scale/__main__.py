"""How time and memory grow with images, batches, ranks, rows, processes and samples; about ten minutes of one core.

    python -m benchmarks.scale

Writes benchmarks/results/scale.json and brings the tables of docs/performance.md up to date. Every curve runs in this
process with one thread and is timed by the processor's clock, so that a busy machine lengthens none of it; it ends
before a size that would take more than --limit seconds.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.document import PERFORMANCE, update
from benchmarks.records import Record, machine_facts, rounded
from benchmarks.scale import gaussian, images, processes, shards
from benchmarks.scale.curves import Curve

OUTPUT = Path("benchmarks/results/scale.json")
LIMIT = 6.0
# The largest dataset takes longer than that, and a machine has it or has not.
SHARDS_LIMIT = 200.0

log = logging.getLogger("benchmarks")

# axis -> its curves, or records, up to a largest size.
Suite = Callable[[float, int | None], Iterator[Record]]


def suites() -> dict[str, Suite]:
    """By name, in the order in which they run."""
    return {
        "operators": _curves(images.operators, images.SIZES),
        "photographs": _curves(images.restorations, images.SIZES),
        "gaussian": _curves(gaussian.sizes, gaussian.SIZES),
        "stacks": _curves(images.stacks, images.BATCHES),
        "ranks": _curves(gaussian.ranks, gaussian.RANKS),
        "rows": _curves(images.matrices, images.ROWS),
        "shards": _curves(shards.datasets, shards.SAMPLES, SHARDS_LIMIT),
        "processes": lambda _, largest: processes.shared(_up_to(processes.PROCESSES, largest)),
    }


def _curves(make: Callable[[tuple[int, ...]], Iterator[Curve]], sizes: tuple[int, ...], least: float = 0) -> Suite:
    def records(limit: float, largest: int | None) -> Iterator[Record]:
        for curve in make(_up_to(sizes, largest)):
            yield from curve.records(max(limit, least))

    return records


def _up_to(sizes: tuple[int, ...], largest: int | None) -> tuple[int, ...]:
    """The sizes of at most `largest`, two at least."""
    return sizes if largest is None else tuple(n for i, n in enumerate(sizes) if n <= largest or i < 2)


def measure(names: list[str], limit: float, largest: int | None, output: Path) -> dict[str, Any]:
    """The records of the named suites beside what `output` has of others, written as soon as a suite is done."""
    start = time.perf_counter()
    before = json.loads(output.read_text())["records"] if output.exists() else []
    kept = [record for record in before if record["part"] not in names]
    result: dict[str, Any] = {"machine": machine_facts(torch.device("cpu")), "records": kept}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        for record in suites()[name](limit, largest):
            kept.append({**record, "part": name})
            log.info("%s %s %s: %s", name, record["what"], record["n"], record.get("parts") or record["ratio"])
        result["machine"]["seconds"] = rounded(time.perf_counter() - start)
        output.write_text(json.dumps(result, indent=1) + "\n")
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(suites()), default=list(suites()))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that one size may take")
    parser.add_argument("--largest", type=int, help="size beyond which nothing is tried")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("invfusion").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    result = measure(arguments.only, arguments.limit, arguments.largest, arguments.output)
    if arguments.output == OUTPUT and PERFORMANCE.exists():
        update(PERFORMANCE, OUTPUT.parent)
    log.info("%d records in %s, %.0f s", len(result["records"]), arguments.output, result["machine"]["seconds"])


if __name__ == "__main__":
    main()
