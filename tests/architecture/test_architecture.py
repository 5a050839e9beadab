"""The house stands as designed: layers, registries and parameters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from components.profiles import load_profile, profile_names
from invfusion.degradations import FAMILIES
from invfusion.operators import OPERATORS
from invfusion.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[2]


def test_layers_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_valid(name: str) -> None:
    load_profile(name)


@pytest.mark.parametrize(
    ("package", "registry"),
    [("degradations", FAMILIES), ("operators", OPERATORS), ("samplers", SAMPLERS)],
    ids=["degradations", "operators", "samplers"],
)
def test_every_kind_that_a_module_declares_is_registered(package: str, registry: dict[str, type]) -> None:
    declared = {
        node.value.value
        for path in (ROOT / "invfusion" / package).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "kind"
        and isinstance(node.value, ast.Constant)
    }
    # A mixture is made of families, a function operator lives in its process alone.
    assert declared - {"mixture", "function"} == set(registry)


def test_nothing_is_unpickled() -> None:
    """Weights and state are safetensors and JSON; what torch loads elsewhere it loads as weights alone.

    One module reads pickles that others wrote, by a reader that finds nothing but its own inert names.
    """
    reader = ROOT / "invfusion/interop/published.py"
    assert "pickle.load" not in reader.read_text()
    for folder in ("invfusion", "components", "flows"):
        for path in (ROOT / folder).rglob("*.py"):
            code = path.read_text()
            assert "import pickle" not in code or path == reader, path
            assert "allow_pickle=True" not in code, path
            assert all("weights_only=True" in call for call in code.split("torch.load(")[1:]), path
