"""A lease's run keeps what it has whatever happens."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import doctor
from benchmarks.doctor import diagnosis
from benchmarks.lease import speed
from benchmarks.lease.__main__ import Case, Lease
from benchmarks.lease.lab import Lab
from benchmarks.records import Record
from invfusion.models.natten_wheel import VERSION, Choice

CPU = torch.device("cpu")


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    lab = Lab(CPU)
    yield Lease(lab, tmp_path / "cuda.json", time.monotonic() + 60, {})
    lab.close()


def _kept(lease: Lease) -> list[Record]:
    records: list[Record] = json.loads(lease.output.read_text())["records"]
    return records


def test_a_failure_is_recorded_and_the_next_case_goes_on(lease: Lease) -> None:
    def fails(_: Lab) -> Iterator[Record]:
        yield {"case": "one", "ms": 1}
        raise RuntimeError("no such kernel\nmore")

    lease.run(Case("first", 5, fails))
    lease.run(Case("second", 5, lambda _: iter([{"case": "two", "ms": 2}])))
    assert _kept(lease) == [
        {"suite": "first", "case": "one", "ms": 1},
        {"suite": "first", "case": "", "failed": "RuntimeError: no such kernel"},
        {"suite": "second", "case": "two", "ms": 2},
    ]


def test_a_case_is_cut_off_and_what_it_found_is_kept(lease: Lease) -> None:
    def endless(_: Lab) -> Iterator[Record]:
        yield {"case": "one", "ms": 1}
        while True:
            time.sleep(0.01)

    lease.run(Case("first", 0.1, endless))
    assert _kept(lease)[0]["ms"] == 1
    assert _kept(lease)[1]["failed"].startswith("cut off")


def test_nothing_begins_without_time(lease: Lease) -> None:
    lease.end = time.monotonic()
    lease.run(Case("first", 5, lambda _: iter([{"case": "one"}])))
    assert "skipped" in _kept(lease)[0]


def test_training_and_sampling_run_on_a_cpu(lease: Lease) -> None:
    """The stand-ins of the paper's networks go through the code that a GPU runs."""
    (trained,) = speed.training(lease.lab, "ffhq64", seconds=0)
    (sampled,) = speed.sampling(lease.lab, "ffhq64", n=1)
    assert trained["images_per_s"] > 0
    assert sampled["images_per_s_at_63_calls"] > 0


def test_the_diagnosis_names_every_level() -> None:
    lines = "\n".join(diagnosis(CPU))
    assert "ffhq64 level 0 (32x32 tokens, 7): sdpa" in lines
    assert "ffhq256 level 3" in lines


def test_the_diagnosis_says_how_to_get_kernels_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "natten_is_compiled", lambda: False)
    monkeypatch.setattr(doctor, "natten_here", lambda: Choice(None, "no GPU is found"))
    assert "natten: not installed: no GPU is found" in "\n".join(diagnosis(CPU)).replace(
        f"installed without its CUDA kernels, or older than {VERSION}", "not installed"
    )
    monkeypatch.setattr(doctor, "natten_here", lambda: Choice("natten==0.21.7+torch2130cu130", "it fits"))
    command = "pip install natten==0.21.7+torch2130cu130 --find-links https://whl.natten.org"
    assert command in "\n".join(diagnosis(CPU))
