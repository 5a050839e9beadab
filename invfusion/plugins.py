"""Operators, families, samplers and metrics of a user's own: importing their module registers them.

A plug-in is a Python module, or a package that names one under the entry point "invfusion.plugins". Its classes join
their registry by a decorator: `@OPERATORS.register`, `@FAMILIES.register`, `@SAMPLERS.register`. From then on,
their kind is as good as a built-in one.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticKnownError

from invfusion.errors import ConfigError
from invfusion.names import Registry, nearest

GROUP = "invfusion.plugins"


def load_plugins(names: Sequence[str]) -> None:
    """Import each plug-in once: an entry point's name, or a module on the path or in the working directory.

    Raises `ConfigError` where one is not found, or fails on import.
    """
    known = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    for name in names:
        _load(known.get(name, name), name)


def _load(module: str, name: str) -> None:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name != module.split(".")[0]:
            raise ConfigError(
                f"the plug-in '{name}' needs the module '{problem.name}', which is not installed"
            ) from None
        raise ConfigError(
            f"the plug-in '{name}' is not here: put {module.replace('.', '/')}.py into {here}, or install the package "
            f"that holds it{_meant(name)}"
        ) from None
    except Exception as problem:
        raise ConfigError(f"the plug-in '{name}' fails on import: {type(problem).__name__}: {problem}") from problem
    finally:
        sys.path.remove(here)


def _meant(name: str) -> str:
    """The nearest of the modules in the working directory and of the entry points, if any is near."""
    here = [path.stem for path in Path.cwd().glob("*.py")] + [entry.name for entry in entry_points(group=GROUP)]
    hint = nearest(name, here)
    return hint if "did you mean" in hint else ""


def accepts_plugins(registry: Registry[Any], base: type[BaseModel], *others: str) -> WrapValidator:
    """For a union that is told apart by `kind`: members that a plug-in registered are validated as the built-in ones.

    An unknown kind is refused with all kinds, those of plug-ins and the union's `others` included.
    """
    built_in = frozenset({*registry, *others})

    def validate(value: Any, union: ValidatorFunctionWrapHandler) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if not isinstance(kind, str) or kind in built_in or not isinstance(value, Mapping | base):
            return union(value)
        if kind in registry:
            return registry[kind].model_validate(value)
        expected = ", ".join(f"'{name}'" for name in (*registry, *others))
        raise PydanticKnownError(
            "union_tag_invalid", {"discriminator": "'kind'", "tag": kind, "expected_tags": expected}
        )

    return WrapValidator(validate)
