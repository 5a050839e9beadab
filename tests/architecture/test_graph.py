"""dvc.yaml names all that a stage reads: the code behind its component, and its parameters in every profile."""

import functools
from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML

from invfusion.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "profiles").glob("*.yaml"))]
# What changes no output: the reading of params.yaml, messages, the record of runs, the file formats' plumbing.
NEUTRAL = {
    "components.children",
    "components.evaluation.costs",
    "components.device",
    "components.training.grids",
    "components.progress",
    "components.evaluation.sharing",
    "components.tracking",
    "components.params",
    "invfusion.data.files",
    "invfusion.data.manifest",
    "invfusion.errors",
    "invfusion.schema",
}
# These two only show or pack what other stages made; `register` hashes the checkpoints and nothing else.
READERS = {"report", "register"}


@functools.cache
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("invfusion", "components")


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


STAGES: dict[str, Any] = {**read(ROOT / "dvc.yaml")["stages"], **read(ROOT / "oracle/dvc.yaml")["stages"]}


def expand(stage: dict[str, Any], params: Any) -> list[str]:
    """The tracked keys, with the matrix filled in from its list of targets."""
    return [
        key.replace("${item.target}", target)
        for key in stage["params"]
        for target in (params["distill"]["targets"] if "${" in key else [""])
    ]


def code_behind(component: str) -> set[str]:
    """Every module whose code can change what a component writes."""
    found, waiting = set(), {component}
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= imports().find_modules_directly_imported_by(module) - found - NEUTRAL
    return found


def covers(dependency: str, module: str) -> bool:
    path = module.replace(".", "/")
    return path == dependency.removesuffix(".py") or path.startswith(f"{dependency}/")


@pytest.mark.parametrize("name", [name for name in STAGES if name not in READERS])
def test_a_stage_depends_on_all_the_code_behind_it(name: str) -> None:
    packages = {module for module in imports().modules if imports().find_children(module)}
    modules = code_behind(f"components.{name}") - packages
    missing = {module for module in modules if not any(covers(dep, module) for dep in STAGES[name]["deps"])}
    assert not missing


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
@pytest.mark.parametrize("name", STAGES)
def test_every_profile_states_what_a_stage_reads(name: str, path: Path) -> None:
    params = read(path)
    for key in expand(STAGES[name], params):
        value = params
        for part in key.split("."):
            assert part in value, f"stage {name} tracks {key}"
            value = value[part]


def test_training_tracks_each_of_its_settings_but_the_list_of_variants() -> None:
    tracked = {key.removeprefix("train.") for key in STAGES["train"]["params"] if key.startswith("train.")}
    assert tracked == set(TrainConfig.model_fields) - {"variants"}


def test_no_stage_depends_on_operational_settings() -> None:
    assert not [key for stage in STAGES.values() for key in stage["params"] if key.startswith("runtime")]
