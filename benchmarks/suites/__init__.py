"""The measurements, by what they measure. Each suite yields records: flat JSON-able mappings with a `suite`."""

from benchmarks.suites.attention import attention
from benchmarks.suites.breakdown import breakdown
from benchmarks.suites.changes import changes
from benchmarks.suites.memory import capacity, memory
from benchmarks.suites.operators import creation, operators
from benchmarks.suites.steps import sampling, training
from benchmarks.suites.threads import threads
from benchmarks.suites.whole import data, whole

SUITES = {
    "operators": operators,
    "creation": creation,
    "attention": attention,
    "training": training,
    "sampling": sampling,
    "breakdown": breakdown,
    "changes": changes,
    "memory": memory,
    "capacity": capacity,
    "data": data,
    "whole": whole,
    "threads": threads,
}

__all__ = ["SUITES"]
