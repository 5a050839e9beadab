"""One record type, one file format, one look-up."""

import json
from pathlib import Path

import pytest

from components.records import Record, available, by_key, read_records, write_records
from invfusion.errors import DataError

# As reports/evaluation.json has them: a number, one that could not be computed, and one with the rarer keys.
WRITTEN = [
    {"method": "InvFusion", "degradation": "matrix", "metric": "psnr", "value": 15.25, "low": 15.0, "high": 15.5,
     "n": 180, "nfe": 35, "measurements_sha256": "ab"},
    {"method": "InvFusion", "degradation": "matrix", "metric": "fid", "value": None, "low": None, "high": None,
     "n": 180, "nfe": 35, "measurements_sha256": "ab", "unavailable": "no file weights/inception"},
    {"method": "DDRM", "degradation": "matrix", "metric": "psnr", "value": 12.0, "low": 11.0, "high": 13.0,
     "n": 178, "nfe": 25, "measurements_sha256": "ab", "n_diverged": 2, "n_exact": 1},
]  # fmt: skip


def test_the_file_is_the_same_after_reading_and_writing(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "evaluation.json"
    path.parent.mkdir()
    path.write_text(json.dumps(WRITTEN))
    records = read_records(path)
    write_records(records, path)
    assert json.loads(path.read_text()) == WRITTEN
    assert len(path.read_text().splitlines()) == len(WRITTEN) + 2
    assert read_records(path) == records


def test_the_look_up(tmp_path: Path) -> None:
    records = [Record(**values) for values in WRITTEN]
    assert by_key(records)["DDRM", "matrix", "psnr"].n_diverged == 2
    assert [r.metric for r in available(records)] == ["psnr", "psnr"]
    assert [r.has_interval for r in records] == [True, False, True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"method": "A"}]', r"0.degradation: Field required"),
        (json.dumps([WRITTEN[0] | {"value": "15"}]), r"0.value: .*number"),
        (json.dumps([WRITTEN[0] | {"unheard_of": 1}]), r"0.unheard_of"),
        ("[{", r"the file: Invalid JSON"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"evaluation\.json holds no records \({reason}"):
        read_records(path)
