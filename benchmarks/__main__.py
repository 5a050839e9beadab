"""Measure everything, write JSON, and bring the tables of docs/performance.md up to date with it.

`python -m benchmarks` takes some ten minutes on two CPU cores, where the paper's networks run narrowed; on a GPU the
same command runs them whole. Every figure is a ratio of calls that ran in turn, so a busy machine does not favour one.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.arithmetic import matmul_peak
from benchmarks.doctor import diagnosis
from benchmarks.document import PERFORMANCE, update
from benchmarks.records import Record, machine_facts, rounded
from benchmarks.suites import SUITES

RESULTS = Path("benchmarks/results")
# Seconds for which one comparison is repeated; the largest part of what a run takes.
SECONDS = 0.1

log = logging.getLogger("benchmarks")


def measure(names: list[str], device: torch.device, seconds: float, compiled: bool, output: Path) -> dict[str, Any]:
    """What `output` holds, where the records of each named suite stand in place of earlier ones as soon as it is done.

    {"suites": {suite: the machine that measured it}, "records"}.
    """
    start, facts = time.perf_counter(), machine(device)
    result = _found_before(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(names, desc="benchmarks", unit="suite", disable=None) as progress:
        for name in progress:
            progress.set_postfix_str(name)
            records = list(_suite(name, compiled)(device, seconds))
            result["records"] = [r for r in result["records"] if r["suite"] != name] + records
            # Some measure nothing on a GPU.
            result["suites"] |= {name: facts} if records else {}
            facts["seconds"] = rounded(time.perf_counter() - start)
            output.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _found_before(output: Path) -> dict[str, Any]:
    """What is in the file; earlier ones had one machine for all suites."""
    result: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"records": []}
    machine = result.pop("machine", None)
    result.setdefault("suites", {r["suite"]: machine for r in result["records"]})
    return result


def _suite(name: str, compiled: bool) -> Callable[[torch.device, float], Iterator[Record]]:
    suite: Callable[..., Iterator[Record]] = SUITES[name]
    return partial(suite, compiled=True) if compiled and name in ("training", "sampling", "threads") else suite


def machine(device: torch.device) -> dict[str, Any]:
    """What ran the measurements, and how fast it multiplies."""
    gflops = {
        str(dtype).removeprefix("torch."): rounded(matmul_peak(device, dtype) / 1e9)
        for dtype in (torch.float32, torch.bfloat16)
    }
    return {**machine_facts(device), "matmul_gflops": gflops}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(SUITES),
        default=list(SUITES),
        help="some of the suites; of the others, earlier records stay",
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for which each comparison is repeated")
    parser.add_argument("--compile", action="store_true", help="also measure compiled networks (minutes more)")
    parser.add_argument(
        "--output", type=Path, help="the JSON file; default: benchmarks/results/<cpu or cuda_suites>.json"
    )
    parser.add_argument("--doctor", action="store_true", help="only say what would run on this machine, and why")
    parser.add_argument("--no-document", action="store_true", help="leave docs/performance.md as it is")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("invfusion").setLevel(logging.WARNING)
    device = torch.device(arguments.device)
    if arguments.doctor:
        log.info("%s", "\n".join(diagnosis(device)))
        return
    output = arguments.output or RESULTS / ("cuda_suites.json" if device.type == "cuda" else "cpu.json")
    result = measure(arguments.only, device, arguments.seconds, arguments.compile, output)
    if not arguments.no_document:
        update(PERFORMANCE, RESULTS)
    log.info("%s: %d records of %s", output, len(result["records"]), ", ".join(result["suites"]))


if __name__ == "__main__":
    main()
