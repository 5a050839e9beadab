"""Operators, families, samplers and metrics of a user's own: importing their module registers them.

A plug-in is a Python module, or a package that names one under the entry point "invfusion.plugins". Its classes join a
registry by a decorator (`register_operator`, `register_family`, `register_sampler`), and from then on their kind is as
good as a built-in one.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from invfusion.errors import ConfigError

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
            "that holds it"
        ) from None
    except Exception as problem:
        raise ConfigError(f"the plug-in '{name}' fails on import: {type(problem).__name__}: {problem}") from problem
    finally:
        sys.path.remove(here)
