"""The report shows every number, says what is missing and why, and needs nothing from outside."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_evaluation import NO_WEIGHTS, record, records, write_run
from safetensors.numpy import load_file

from components.profiles import load_profile
from components.records import write_records
from components.reporting import figures, pictures, tables
from components.reporting import report as step
from components.reporting.paper import Paper
from invfusion.errors import DataError
from invfusion.metrics import METRICS
from invfusion.noise import GaussianNoise
from invfusion.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]


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
        assert step.report(load_profile()) == Path("reports/index.html")


def read(project: Path, name: str) -> str:
    return (project / "reports" / name).read_text()


@pytest.mark.parametrize("name", ["index.html", "report.md"])
def test_every_record_is_shown(project: Path, name: str) -> None:
    text = read(project, name)
    for entry in records():
        if entry.value is not None:
            assert METRICS[entry.metric].show(entry.value) in text.replace("&lt;", "<"), entry


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
    write_records([record("InvFusion", "matrix", "psnr", 15.0)], tmp_path / "reports" / "evaluation.json")
    make_report(tmp_path)
    page = read(tmp_path, "index.html")
    assert "15.0" in page
    assert "holds no comparison" in page


def test_what_each_method_took_is_told(tmp_path: Path) -> None:
    write_records([record("InvFusion", "matrix", "psnr", 15.0)], tmp_path / "reports" / "evaluation.json")
    costs = [{"method": "InvFusion", "degradation": "matrix", "seconds_per_image": 0.1234}]
    (tmp_path / "reports" / "costs.json").write_text(json.dumps(costs))
    make_report(tmp_path)
    assert "| InvFusion | 123 |" in read(tmp_path, "report.md")


def test_a_missing_evaluation_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"evaluation\.json"):
        step.report(load_profile())


def sections(project: Path) -> dict[str, str]:
    """The Markdown report, section by section; the first under an empty name."""
    parts = re.split(r"^## (.*)$", read(project, "report.md"), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[0::2], strict=True))


def test_the_first_lines_name_losses_and_wins_against_doing_nothing_and_zero_shot_methods(project: Path) -> None:
    first = sections(project)[""]
    assert "> InvFusion, by PSNR: wins against H†y (everywhere), DDRM (everywhere), Palette (everywhere)." in first
    assert "InvFusion distilled, by PSNR: wins against" in first
    assert first.index("InvFusion, by") < first.index("| Dataset |")


def test_ours_are_the_methods_that_read_out_a_network_which_applies_the_operator() -> None:
    params = load_profile()
    ours = {name for name in params.methods if step.is_invfusion(params, name)}
    read_outs = {"InvFusion", "InvFusion-G", "InvFusion MMSE", "InvFusion-G MMSE", "MMSE", "NPPC"}
    assert ours == read_outs | {"InvFusion trained for MMSE", "Flow matching", "Consistency"}
    assert step.with_components(params) == ["NPPC"]


def test_the_registered_model_gives_the_facts_and_the_further_draw(tmp_path: Path) -> None:
    write_run(tmp_path, n=1)
    restorations = tmp_path / "artifacts" / "evaluation" / "restorations"
    folder = restorations / "matrix"
    drawn = dict(load_file(folder / "invfusion.safetensors"))
    titles = [c.title for c in pictures.method_columns("InvFusion-G", drawn, drawn["images"], shows_draw=True)]
    assert titles == ["InvFusion-G", "InvFusion-G\nanother draw"]
    assert len(pictures.method_columns("InvFusion", drawn, drawn["images"], shows_draw=False)) == 1
    (spread,) = pictures.spread_column("InvFusion-G", folder / "invfusion.safetensors")
    assert spread.title.startswith("InvFusion-G std")
    shutil.copytree(tmp_path / "artifacts/models/invfusion", tmp_path / "artifacts/models/invfusion_g")
    shutil.rmtree(tmp_path / "artifacts/models/invfusion")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert step.facts(load_profile())["Code"] == "revision 0123456789"


def test_every_trained_model_has_a_colour_of_its_own() -> None:
    assert set(figures.COLOURS) == set(RECIPES)
    assert len(set(figures.COLOURS.values())) == len(RECIPES)


def test_doing_nothing_comes_first_where_it_wins(tmp_path: Path) -> None:
    found = [
        record("InvFusion", "matrix", "psnr", 15.0), record("H_pinv y", "matrix", "psnr", 20.0),
        record("DDRM", "matrix", "psnr", 10.0), record("Palette", "matrix", "psnr", 15.1),
    ]  # fmt: skip
    write_records(found, tmp_path / "reports" / "evaluation.json")
    make_report(tmp_path)
    expected = (
        "InvFusion, by PSNR: loses to H†y (matrix operator); wins against DDRM (matrix operator); is undecided against "
        "Palette (matrix operator)."
    )
    assert expected in read(tmp_path, "index.html")


def test_differences_are_shown_with_their_intervals(project: Path) -> None:
    shown = sections(project)["What the numbers show"]
    assert re.search(r"\| DDRM \| \+4\.00 ✓ \(\+3\.\d\d to \+4\.\d\d\)", shown)
    assert re.search(r"\| Palette MMSE \| \+2\.60 ✓", shown)


def report_table(metrics: Sequence[str], kinds: Sequence[str], **more: Any) -> tables.Table:
    found = records()
    groups = tables.grouped(load_profile().methods, found)
    return tables.layout(groups, dict.fromkeys(kinds, metrics), found, **more)


def test_the_best_of_a_column_is_bold_and_the_measurement_is_no_rival_in_agreeing_with_itself() -> None:
    table = report_table(["psnr", "fd_pixel8x8", "consistency_mse"], ["matrix"])
    rows = {row[0].text: [cell.style for cell in row[1:-1]] for rows in table.groups.values() for row in rows}
    assert rows["InvFusion distilled"] == ["best", "", ""]
    assert rows["InvFusion"] == ["", "", ""], "a stand-in's smallest distance is no best FID"
    assert rows["DDRM"] == ["", "", "best"]
    assert rows["H†y"] == ["", "", ""]


def test_methods_find_their_group_by_what_they_are() -> None:
    table = report_table(["psnr"], ["matrix"])
    found = {group: [row[0].text for row in rows] for group, rows in table.groups.items()}
    assert found == {
        "Without a trained model": ["H†y"],
        "Zero-shot methods": ["DDRM"],
        "Training-based methods": ["Palette", "InvFusion", "Unconditional"],
        "MMSE predictors, one step (training-based)": [
            "Palette MMSE", "InvFusion MMSE", "InvFusion distilled", "InvFusion NPPC (mean)"
        ],
    }  # fmt: skip


def test_the_papers_numbers_stand_beside_the_same_quantity_only() -> None:
    faces = Paper.of_noise(GaussianNoise(), "ffhq64")
    assert faces.number("strided_motion_blur", "InvFusion", "psnr") == "22.7"
    assert faces.number("matrix", "Palette", "cfid") == "25.5"
    assert faces.number("unconditional", "InvFusion", "fid") == "6.36"
    assert faces.number("strided_motion_blur", "InvFusion", "fd_pixel8x8") == ""
    noisy = Paper.of_noise(GaussianNoise(sigma_y=0.1), "ffhq64").number("strided_motion_blur", "InvFusion", "psnr")
    assert noisy not in ("", "22.7")
    for other in (Paper.of_noise(GaussianNoise(sigma_y=0.05), "ffhq64"), Paper.of_noise(GaussianNoise(), "digits16")):
        assert other.number("strided_motion_blur", "InvFusion", "psnr") == ""
    shown = report_table(["psnr"], ["matrix"], paper=faces, paper_names={"MMSE": "InvFusion trained for MMSE"})
    beside = {row[0].text: row[1].paper for rows in shown.groups.values() for row in rows}
    assert beside["InvFusion"] == faces.number("matrix", "InvFusion", "psnr")
    assert beside["InvFusion distilled"] == faces.number("matrix", "InvFusion trained for MMSE", "psnr") != ""
