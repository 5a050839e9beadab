"""The frozen measurement sets of the tables are DVC's."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.table import SETS, VERSION, bring_sets, version_sets
from invfusion.errors import DataError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)


def test_they_are_versioned_and_come_back() -> None:
    bring_sets()
    version_sets()
    assert not VERSION.exists()
    SETS.mkdir()
    (SETS / "matrix.json").write_text("{}")
    version_sets()
    first = VERSION.read_text()
    shutil.rmtree(SETS)
    bring_sets()
    assert (SETS / "matrix.json").read_text() == "{}"
    (SETS / "blur.json").write_text("{}")
    version_sets()
    assert VERSION.read_text() != first


def test_lost_ones_are_refused() -> None:
    SETS.mkdir()
    (SETS / "matrix.json").write_text("{}")
    version_sets()
    shutil.rmtree(SETS)
    shutil.rmtree(".dvc/cache")
    with pytest.raises(DataError, match=r"measurements\.dvc names frozen measurement sets that are neither here nor"):
        bring_sets()
