"""The house stands as designed: layers, registries, parameters, and a Prefect server that builds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from invfusion.config import load_params
from invfusion.degradations import FAMILIES
from invfusion.operators import OPERATORS
from invfusion.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[2]
PARAMS = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]


def test_layers_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.name)
def test_every_profile_is_valid(path: Path) -> None:
    load_params(path)


def test_the_default_experiment_is_a_profile() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "profiles/digits16.yaml").read_text()


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
    assert declared - {"mixture"} == set(registry)


def test_every_tracked_parameter_exists() -> None:
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        for key in stage["params"]:
            if "${" in key:  # a matrix stage tracks the section of its own item
                key = key.replace("${item.target}", params["distill"]["targets"][0])
            value = params
            for part in key.split("."):
                assert part in value, f"stage {name} tracks {key}, which params.yaml does not have"
                value = value[part]


def test_the_prefect_server_builds() -> None:
    from prefect.server.api.server import create_app

    assert create_app() is not None
