"""Command lines alike: the parameters by default, one line for what is wrong."""

import importlib
import logging
from pathlib import Path

import pytest

from components import cli
from components.params import Params
from invfusion.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def test_the_parameters_come_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = cli.parser("Do something.")
    command.add_argument("name")
    with cli.started(command, ["x"]) as options:
        assert isinstance(options.params, Params)
        assert options.name == "x"


def test_a_deliberate_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: too small$"), cli.started(cli.parser("", params=False), []):
        raise ConfigError("too small")


def test_parameters_that_are_missing_are_a_deliberate_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*nowhere\.yaml"):
        cli.started(cli.parser(""), ["--params", str(tmp_path / "nowhere.yaml")]).__enter__()


def test_helpers_log_nothing_but_errors() -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        with cli.started(cli.parser("", params=False), [], quiet=True):
            assert root.level == logging.ERROR
    finally:
        root.handlers[:] = before
        root.setLevel(level)


@pytest.mark.parametrize("module", ["registry.promotion", "training.dry_run", "training.train", "data.build_dataset"])
def test_every_command_shows_its_help(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(f"components.{module}").main()
    assert "usage:" in capsys.readouterr().out
