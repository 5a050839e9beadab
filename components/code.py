"""The identity of code: what some code has made is not taken for the work of another.

An entry point is a module, or `module:name` for the module that defines the name. Its code is its import closure among
the project's modules, read from the sources without running them. A package's `__init__` is followed only to the names
that are asked for, so that what else it lists changes nothing. Comments, docstrings and layout are no part of a digest.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from invfusion.errors import ConfigError

PACKAGES = frozenset({"invfusion", "components", "flows"})

# Modules, and all below them, that change no result: the reading of params.yaml (stages and runs are keyed by its
# values), messages, the record of runs, locks and the writing of files, and how work is shared.
NEUTRAL = (
    "components.children",
    "components.cli",
    "components.code",
    "components.device",
    "components.evaluation.costs",
    "components.evaluation.sharing",
    "components.params",
    "components.progress",
    "components.tracking",
    "components.training.grids",
    "invfusion.errors",
    "invfusion.schema",
    "invfusion.files",
    "invfusion.locks",
    "invfusion.names",
    "invfusion.training.lock",
)


def code_digest(*entry_points: str) -> str:
    """SHA-256 of all the code behind some entry points, whose order does not matter.

    Raises:
        ConfigError: an entry point is not to be found.
    """
    return sources().digest(*entry_points)


def code_of(*objects: Any) -> set[str]:
    """The entry points of objects: the modules of their classes, and of the settings that they hold."""
    found: set[str] = set()
    for thing in objects:
        if isinstance(thing, BaseModel):
            own = type(thing).__module__
            found |= (set() if _is_neutral(own) else {own}) | code_of(*dict(thing).values())
        elif isinstance(thing, Mapping):
            found |= code_of(*thing.values())
        elif isinstance(thing, list | tuple):
            found |= code_of(*thing)
    return found


@cache
def sources() -> "Sources":
    """The sources of the packages that are imported here."""
    return Sources(_root("invfusion"))


@dataclass(frozen=True)
class Sources:
    """The modules below one folder, which holds the packages."""

    root: Path

    def digest(self, *entry_points: str) -> str:
        """As `code_digest`."""
        return hashlib.sha256(json.dumps(self.digests(*entry_points), sort_keys=True).encode()).hexdigest()

    def digests(self, *entry_points: str) -> dict[str, str]:
        """{module: the SHA-256 of its code} for each module behind some entry points, by name."""
        behind: set[str] = set()
        waiting = {module for entry_point in entry_points for module in self._entry(entry_point)}
        while waiting:
            module = waiting.pop()
            behind.add(module)
            waiting |= {found for found in self._module(module).imports if not _is_neutral(found)} - behind
        return {module: self._module(module).digest for module in sorted(behind)}

    def imports(self, module: str) -> set[str]:
        """The project's modules that one of them imports, neutral ones too."""
        return self._module(module).imports

    def _entry(self, entry_point: str) -> set[str]:
        name, _, member = entry_point.partition(":")
        if self._path(name) is None:
            raise ConfigError(f"the code of '{entry_point}' is not to be found: there is no module {name}")
        return set(self._named(name, member)) if member else {name}

    def _module(self, name: str) -> "_Module":
        if name not in self._modules:
            path = self._path(name)
            assert path is not None, name
            self._modules[name] = _Module(self, name, path)
        return self._modules[name]

    @cached_property
    def _modules(self) -> dict[str, "_Module"]:
        return {}

    def _path(self, module: str) -> Path | None:
        """Its file; None where there is none."""
        top, *rest = module.split(".")
        root = self.root if top in PACKAGES else _root(top)
        path = root.joinpath(top, *rest)
        return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)

    def _named(self, module: str, name: str) -> Iterator[str]:
        """The modules behind `from module import name`."""
        path = self._path(module)
        if path is None:
            return
        if path.name != "__init__.py" or name in (package := self._module(module)).defined:
            yield module
        elif name in package.re_exported:
            yield from self._named(*package.re_exported[name])
        elif self._path(f"{module}.{name}") is not None:
            yield f"{module}.{name}"
        else:
            # It cannot be told where the name comes from: any module of the package may define it.
            yield from (".".join(p.relative_to(self.root).with_suffix("").parts) for p in path.parent.rglob("*.py"))


class _Module:
    """One source file."""

    def __init__(self, sources: Sources, name: str, path: Path) -> None:
        self._sources, self._name, self._is_package = sources, name, path.name == "__init__.py"
        self._content = _content(path.read_bytes())

    @property
    def digest(self) -> str:
        return self._content.digest

    @property
    def defined(self) -> frozenset[str]:
        return self._content.defined

    @cached_property
    def imports(self) -> set[str]:
        """The project's modules that it imports, anywhere in it."""
        found: set[str] = set()
        for node in self._content.imports:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if self._is_ours(alias.name)}
            elif self._is_ours(base := self._base(node)):
                found |= {module for alias in node.names for module in self._sources._named(base, alias.name)}
        return found

    @cached_property
    def re_exported(self) -> dict[str, tuple[str, str]]:
        """{name: (module, its name there)} of what it imports by name."""
        nodes = [node for node in self._content.imports if isinstance(node, ast.ImportFrom)]
        return {a.asname or a.name: (self._base(node), a.name) for node in nodes for a in node.names}

    def _base(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self._name.split(".")
        package = parts[: len(parts) - node.level + self._is_package]
        return ".".join([*package, *filter(None, [node.module])])

    def _is_ours(self, module: str) -> bool:
        top = module.partition(".")[0]
        return (top in PACKAGES or top == self._name.partition(".")[0]) and self._sources._path(module) is not None


@dataclass(frozen=True)
class _Content:
    """What a source file says. defined: the names that it binds itself, other than by an import."""

    digest: str
    imports: tuple[ast.Import | ast.ImportFrom, ...]
    defined: frozenset[str]


@cache
def _content(text: bytes) -> _Content:
    tree: ast.Module = _Bare().visit(ast.parse(text))
    digest = hashlib.sha256(json.dumps(_plain(tree)).encode()).hexdigest()
    imports = tuple(node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    return _Content(digest, imports, frozenset(_defined(tree)))


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield node.name
        elif not isinstance(node, ast.ImportFrom | ast.Import):
            yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


class _Bare(ast.NodeTransformer):
    """Leaves out docstrings, and what only a type checker reads."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return [self.visit(child) for child in node.orelse]
        return self.generic_visit(node)


def _plain(node: Any) -> Any:
    """A syntax tree as JSON, equal for every version of Python: without positions and empty fields."""
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node) if value not in (None, [])}
        return [type(node).__name__, fields]
    return [_plain(child) for child in node] if isinstance(node, list) else repr(node)


def _is_neutral(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in NEUTRAL)


@cache
def _root(top: str) -> Path:
    """The folder that holds a top-level module or package."""
    found = find_spec(top)
    if found is None or found.origin is None:
        raise ConfigError(f"there is no module '{top}', whose code is part of the identity of a result")
    origin = Path(found.origin)
    return origin.parent.parent if found.submodule_search_locations else origin.parent
