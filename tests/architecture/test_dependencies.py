"""What pyproject.toml declares is what the code imports: no more, and no less."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("invfusion", "components", "flows", "benchmarks")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = importlib.metadata.packages_distributions()
# Modules of packages that are not installed everywhere, or that another brings along.
PROVIDERS = {
    "natten": "natten",
    "deepinv": "deepinv",
    "skimage": "scikit-image",
    "diffusers": "diffusers",
    "pydantic_core": "pydantic",
}
# NATTEN is built by the set-up, where it can be.
NOT_DECLARED = {"natten"}
# Shards are read by invfusion.data.shards, which nothing but the making and staging of datasets imports; the service is
# invfusion.serving.app, which `invfusion serve` imports.
APART = {"webdataset", "fastapi"}
# Imported by name at run time, or capped since others of our packages break with a later one.
NOT_IMPORTED = {"torchvision", "tifffile", "imagecodecs", "pywavelets", "deepinv"}
# What DVC, MLflow and Prefect load by themselves, where they are set to.
NOT_IMPORTED |= {"dvc-s3", "boto3", "psycopg2-binary", "flask-wtf", "prefect-docker", "prefect-kubernetes"}


def declared(*extras: str) -> set[str]:
    """The packages that a group of the project needs; "" is the library alone."""
    chosen = [line for extra in extras for line in (PROJECT["optional-dependencies"][extra] if extra else BASE)]
    names = {_normal(re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0]) for line in chosen}
    return names - {PROJECT["name"]}  # one extra may ask for another


BASE = PROJECT["dependencies"]
EXTRAS = [extra for extra in PROJECT["optional-dependencies"] if extra != "dev"]


def imported(folder: str, *, always: bool) -> set[str]:
    """The packages that the code of a folder imports: when it is loaded (always), or at any time."""
    return {
        package
        for path in (ROOT / folder).rglob("*.py")
        for module in _modules(ast.parse(path.read_text()), always)
        for package in _package(module)
    }


def _modules(tree: ast.Module, always: bool) -> Iterator[str]:
    for node in tree.body if always else ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name


def _package(module: str) -> set[str]:
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top in (*PACKAGES, "tests"):
        return set()
    # What several installed packages share (a namespace) counts for those of them that are declared.
    installed = [PROVIDERS[top]] if top in PROVIDERS else DISTRIBUTIONS.get(top, [top])
    names = {_normal(name) for name in installed}
    return names & declared("", *EXTRAS) or names


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_library_alone_has_what_it_imports_when_it_is_loaded() -> None:
    assert imported("invfusion", always=True) - APART <= declared("")


def test_what_the_library_requires_it_imports() -> None:
    assert declared("") <= imported("invfusion", always=False)


@pytest.mark.parametrize("folder", PACKAGES)
def test_all_imports_are_declared(folder: str) -> None:
    assert imported(folder, always=False) - NOT_DECLARED <= declared("", *EXTRAS)


def test_what_the_extras_require_is_imported() -> None:
    used = {package for folder in PACKAGES for package in imported(folder, always=False)}
    assert declared(*EXTRAS) - NOT_IMPORTED <= used


def test_every_declared_package_is_pinned() -> None:
    pins = {_normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert declared("", *EXTRAS, "dev") <= pins
