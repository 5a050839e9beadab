"""The report shows every number, says what is missing and why, and needs nothing from outside."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_evaluation import NO_WEIGHTS, record, records, write_run

from components.params import load_params
from components.reporting import report as step
from components.reporting import tables
from components.reporting.tables import Paper
from invfusion.errors import DataError
from invfusion.noise import GaussianNoise

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "components" / "reporting" / "paper_tables.csv"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up run and its report."""
    folder = tmp_path_factory.mktemp("project")
    write_run(folder, n=2)
    make_report(folder)
    return folder


def make_report(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert step.report(load_params(ROOT / "params.yaml")) == Path("reports/index.html")


def read(project: Path, name: str) -> str:
    return (project / "reports" / name).read_text()


@pytest.mark.parametrize("name", ["index.html", "report.md"])
def test_every_record_is_shown(project: Path, name: str) -> None:
    text = read(project, name)
    for entry in records():
        if entry["value"] is not None:
            assert tables.formatter(entry["metric"])(entry["value"]) in text.replace("&lt;", "<"), entry


@pytest.mark.parametrize("name", ["index.html", "report.md"])
def test_what_is_missing_is_explained(project: Path, name: str) -> None:
    text = read(project, name)
    assert f"FID, CFID, KID, LPIPS: {NO_WEIGHTS}" in text
    assert "The paper reports no number for this dataset" in text
    assert "Table 1" in text
    assert "FFHQ64" in text


def test_the_page_needs_nothing_from_outside(project: Path) -> None:
    page = read(project, "index.html")
    assert not re.findall(r"https?://|src=\"(?!data:)|@import|<script|<link", page)
    assert page.count("data:image/png;base64,") == 9
    assert "Calibration" in page


def test_the_markdown_shows_its_figures(project: Path) -> None:
    named = re.findall(r"\]\((figures/[^)]+)\)", read(project, "report.md"))
    assert len(named) == 9
    assert all((project / "reports" / name).exists() for name in named)


def test_the_same_run_gives_the_same_bytes(project: Path) -> None:
    files = [path for path in sorted((project / "reports").rglob("*")) if path.is_file()]
    before = [path.read_bytes() for path in files]
    make_report(project)
    assert [path.read_bytes() for path in files] == before


def test_a_bare_evaluation_is_enough(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "evaluation.json").write_text(json.dumps([record("InvFusion", "matrix", "psnr", 15.0)]))
    make_report(tmp_path)
    page = read(tmp_path, "index.html")
    assert "15.0" in page
    assert "holds no comparison" in page


def test_a_missing_evaluation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"evaluation\.json"):
        step.report(load_params(ROOT / "params.yaml"))


def claim(ours: float, theirs: float, metric: str = "psnr") -> Any:
    pair = [record("InvFusion", "matrix", metric, ours), record("Palette", "matrix", metric, theirs)]
    (found,) = tables.claims(pair, ["matrix"])
    return found


@pytest.mark.parametrize(
    ("ours", "theirs", "metric", "verdict"),
    [
        (16.0, 13.0, "psnr", "holds"),
        (13.2, 13.0, "psnr", "holds, intervals overlap"),
        (13.0, 16.0, "psnr", "does not hold"),
        (0.001, 0.02, "consistency_mse", "holds"),
        (0.02, 0.001, "consistency_mse", "does not hold"),
    ],
)
def test_orderings_are_judged_with_their_intervals(ours: float, theirs: float, metric: str, verdict: str) -> None:
    assert claim(ours, theirs, metric).verdict == verdict


def test_the_best_of_a_column_is_bold_and_the_measurement_is_no_rival() -> None:
    table = tables.restoration_table([r for r in records() if tables.is_main(r, records())], ["matrix"], None)
    bold = {row.label: [cell.best for cell in row.cells] for _, rows in table.row_groups for row in rows}
    assert bold["InvFusion, distilled"] == [True, False, False, False]
    assert bold["InvFusion"] == [False, True, True, False]
    assert bold["DDRM"] == [False, False, False, True]
    assert not any(bold["H†y, the measurement"])


def test_the_papers_numbers_stand_beside_the_same_quantity_only() -> None:
    faces = Paper.load(PAPER, "ffhq64", GaussianNoise())
    assert faces.number("strided_motion_blur", "InvFusion", "psnr") == "22.7"
    assert faces.number("matrix", "Palette", "cfid") == "25.5"
    assert faces.number("unconditional", "InvFusion", "fid") == "6.36"
    assert faces.number("strided_motion_blur", "InvFusion", "fd_pixel8x8") == ""
    assert (
        Paper.load(PAPER, "ffhq64", GaussianNoise(sigma_y=0.1)).number("strided_motion_blur", "InvFusion", "psnr")
        != "22.7"
    )
    assert (
        Paper.load(PAPER, "ffhq64", GaussianNoise(sigma_y=0.05)).number("strided_motion_blur", "InvFusion", "psnr")
        == ""
    )
    assert Paper.load(PAPER, "digits16", GaussianNoise()).number("strided_motion_blur", "InvFusion", "psnr") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1e-9, "<0.001"), (0.0123, "0.012"), (2.0, "2.00"), (12.34, "12.3"), (1234.5, "1234")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert tables.short(value) == text
