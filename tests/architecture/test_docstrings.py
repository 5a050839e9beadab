"""A reader of the library sees the shapes: whatever takes tensors says how they are shaped."""

import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import invfusion

# (B, C, H, W), (B,), (..., d), (n, r): or words for tensors that may have any shape, or that of another.
SHAPE = re.compile(
    r"\((?:\*?\w[\w*/+. ]*|\.\.\.)(?:,[^()]*)\)|any shape|shape of any|shaped like|of one shape|the shape of"
)


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(invfusion.__path__, "invfusion."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def takes_tensors(function: Callable[..., Any]) -> bool:
    annotations = (a for name, a in function.__annotations__.items() if name != "return")
    return any(a is Tensor or (isinstance(a, types.UnionType) and Tensor in typing.get_args(a)) for a in annotations)


def public(owner: Any, module: str) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Public functions and methods that take tensors, each with the text that tells of it."""
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)
        is_call = name == "__call__" or (name == "forward" and issubclass(owner, nn.Module))
        if inspect.isclass(member) and issubclass(member, torch.autograd.Function):
            continue
        if inspect.isclass(member) and member.__module__ == module and not name.startswith("_"):
            yield from ((f"{name}.{inner}", f, text) for inner, f, text in public(member, module))
        elif inspect.isfunction(function) and function.__module__ == module and (is_call or not name.startswith("_")):
            text = inspect.getdoc(getattr(owner, name)) or ""
            if takes_tensors(function):
                yield name, function, text + (inspect.getdoc(owner) or "" if is_call else "")


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_shapes_are_stated(module: ModuleType) -> None:
    missing = [name for name, _, text in public(module, module.__name__) if not SHAPE.search(text)]
    assert not missing, f"say in the docstrings how tensors are shaped, such as (B, C, H, W): {', '.join(missing)}"
