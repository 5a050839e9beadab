"""Training of the default preset by 1, 2 and 4 processes of one thread each, which share every batch over gloo."""

import os
from collections.abc import Iterator, Sequence

from benchmarks.records import Record, rounded
from benchmarks.suites.threads import Case, run

PROCESSES = (1, 2, 4)


def shared(counts: Sequence[int]) -> Iterator[Record]:
    """Images per second of all together, by wall clock; more processes than cores take turns."""
    cores = os.cpu_count() or 1
    alone = 0.0
    for n in counts:
        rate = run("training", Case("ours", "ours", n, 1))
        alone = alone or rate / n
        yield {
            "suite": "scale",
            "axis": "processes",
            "what": "training, default preset",
            "n": n,
            "cores": cores,
            "images_per_second": rounded(rate),
            "ratio": rounded(rate / alone),
            "efficiency": rounded(rate / alone / min(n, cores)),
        }
