"""docs/own_operator.md runs as it stands, and what it registers is as good as built in."""

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from invfusion.degradations import FAMILIES, AnyFamily
from invfusion.errors import ConfigError, OperatorError
from invfusion.operators import OPERATORS, operator_from_spec, spec_from_json, spec_to_json
from invfusion.plugins import load_plugins
from invfusion.rng import generator

PAGE = Path(__file__).parents[3] / "docs" / "own_operator.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the page's file; what it registers is forgotten afterwards."""
    own, *others = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_ops.py").write_text(own)
    (tmp_path / "check.py").write_text(others[0])
    (tmp_path / "restore.py").write_text(others[1])
    monkeypatch.chdir(tmp_path)
    # Other tests have files of this name too.
    sys.modules.pop("my_ops", None)
    yield tmp_path
    for registry in (OPERATORS, FAMILIES):
        registry.pop("interlaced", None)
    sys.modules.pop("my_ops", None)


def test_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(folder)
    runpy.run_path("check.py", run_name="__main__")
    report = capsys.readouterr().out
    assert "keeps its contract" in report
    assert "tier: iterative" in report
    assert "with noise, all" in report
    runpy.run_path("restore.py", run_name="__main__")
    assert float(capsys.readouterr().out) < 1e-3


def test_a_plugin_is_loaded_by_name_and_missed_by_name(folder: Path) -> None:
    load_plugins(["my_ops"])
    family = TypeAdapter(AnyFamily).validate_python({"kind": "interlaced"})
    operator = family.sample(2, (3, 5, 4), generator(0, "H"))
    text = spec_to_json(operator.to_spec())
    assert json.loads(text)["plugin"] == "my_ops"
    assert operator_from_spec(spec_from_json(text)).measurement_shape == (3, 3, 4)
    del OPERATORS["interlaced"]
    with pytest.raises(OperatorError, match=r"comes from the plug-in 'my_ops'.*load_plugins\(\['my_ops'\]\)"):
        operator_from_spec(spec_from_json(text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not here: put broken_ops.py into"),
        ("import nowhere_to_be_found", "needs the module 'nowhere_to_be_found'"),
        ("1 / 0", "fails on import: ZeroDivisionError"),
    ],
)
def test_what_keeps_a_plugin_from_loading_is_said(folder: Path, content: str | None, message: str) -> None:
    if content is not None:
        (folder / "broken_ops.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_plugins(["broken_ops"])
    sys.modules.pop("broken_ops", None)
