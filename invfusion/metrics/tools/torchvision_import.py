"""Importing torchvision beside a PyTorch for which its compiled operators were not built."""

import importlib
import sys

import torch

# torchvision registers shape rules for these while it is imported, and fails where nothing has declared them. Networks
# and transforms work without; a call of the operators themselves still raises.
_UNDECLARED = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# Declarations last as long as their library.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> None:
    """Import torchvision, with its missing operators declared where its compiled part cannot be loaded.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it cannot be imported even so.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in _UNDECLARED:
            library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
        _libraries.append(library)
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]
        importlib.import_module("torchvision")
