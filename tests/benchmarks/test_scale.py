"""How cost grows: the fit, where a curve ends, and every suite at its smallest sizes."""

import json
from pathlib import Path

import pytest

from benchmarks.document import render
from benchmarks.scale import curves
from benchmarks.scale.__main__ import measure, suites
from benchmarks.scale.curves import Clock, Curve, expected, exponent, peak_mib
from benchmarks.scale.shards import opened


def test_the_exponent_is_of_the_upper_half() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    assert exponent(sizes, [5.0, 5.0, 5.0, 8.0**2, 16.0**2, 32.0**2]) == pytest.approx(2)
    assert exponent([1, 2], [1.0, 8.0]) == pytest.approx(3)
    assert exponent([1], [1.0]) is None


def test_what_the_next_size_takes_follows_the_last_two_but_not_beyond_what_the_work_needs() -> None:
    assert expected([(1, 1.0)], 2, must=3) == pytest.approx(2)
    assert expected([(1, 1.0), (2, 4.0)], 4, must=3) == pytest.approx(16)
    assert expected([(1, 1.0), (2, 16.0)], 4, must=2) == pytest.approx(64)


def test_a_curve_ends_before_what_would_take_too_long() -> None:
    def run(n: int, clock: Clock) -> None:
        clock.seconds = {"one": 0.75 * n, "two": 0.25 * n}

    records = list(Curve("work", "side", (1, 2, 4, 8), 2, run).records(limit=3.0))
    assert [r["n"] for r in records] == [1, 2]
    assert records[1]["parts"] == {"one": 1.5, "two": 0.5}


def test_memory_is_what_was_held_within() -> None:
    with peak_mib() as peak:
        held = bytearray(64 * 2**20)
    del held
    assert peak[0] is None or 60 < peak[0] < 80


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in suites() if name not in ("processes", "shards")])
def test_every_suite_runs_at_its_smallest_sizes_and_has_its_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "REPEATS", 1)
    output = tmp_path / "scale.json"
    result = measure([name], limit=60, largest=1, output=output)
    assert json.loads(output.read_text())["records"] == result["records"]
    axis = result["records"][0]["axis"]
    page = render(f"<!-- table scale-{axis} -->\n<!-- end -->", {"scale": result})
    assert all(record["what"] in page for record in result["records"])


def test_simulated_shards_are_a_dataset() -> None:
    clock = Clock()
    opened(2500, clock)
    assert set(clock.seconds) == {"staging, nothing to do", "opening", "order and first batch"}
