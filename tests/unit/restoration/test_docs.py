"""The Python of docs/restore.md and docs/own_model.md runs as it stands, and its commands are commands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invfusion.cli.main import parser

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.mark.parametrize("page", ["restore.md", "own_model.md"])
def test_the_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.full((48, 96, 3), 120, np.uint8)
    Image.fromarray(pixels).save("photo.png")
    pixels[:] = 0
    pixels[10:20, 5:60] = 255
    Image.fromarray(pixels).save("scribble.png")
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    exec(code, {})
    assert Image.open("out.png").size == (96, 48)


def test_the_commands_are_understood() -> None:
    text = (DOCS / "restore.md").read_text() + (DOCS.parent / "README.md").read_text()
    commands = re.findall(r"^invfusion (.*?)(?: +#.*)?$", text, re.MULTILINE)
    commands += re.findall(r"`invfusion ([^`]*?)`", text)
    assert len(commands) >= 6
    for command in commands:
        if not command.startswith("error"):
            parser().parse_args(shlex.split(command.replace("\n", " ")))


def test_the_model_has_as_many_numbers_as_said() -> None:
    from invfusion.restoration.photos import load_photos

    description = load_photos().description
    n = sum(np.array(description[name]).size for name in ("mean", "colours", "frequencies", "power"))
    assert f"{n} numbers" in (DOCS / "restore.md").read_text()
