"""Files as the published code writes them, made without it: classes under its names, tensors under its names."""

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from invfusion.models import Denoiser
from invfusion.models.official import official_name


@contextmanager
def importable(**modules: dict[str, Any]) -> Iterator[None]:
    """Modules of the published code's names ("a__b" is a.b), for the time of a pickling."""
    names = []
    for name, content in modules.items():
        full = name.replace("__", ".")
        module = types.ModuleType(full)
        for key, value in content.items():
            if isinstance(value, type) or callable(value):
                value.__module__, value.__qualname__ = full, key
            setattr(module, key, value)
        sys.modules[full] = module
        names.append(full)
    try:
        yield
    finally:
        for full in names:
            del sys.modules[full]


class EasyDict(dict):  # type: ignore[type-arg]
    """A mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def published_state(denoiser: Denoiser) -> dict[str, Tensor]:
    """Its tensors under the published names."""
    return {official_name(key): t.clone() for key, t in denoiser.state_dict().items()}


def write_state(path: Path, ema: dict[str, Tensor], net: dict[str, Tensor] | None = None) -> Path:
    """A training state."""
    with importable(dnnlib={}, dnnlib__util={"EasyDict": EasyDict}):
        content = {
            "state": EasyDict(cur_nimg=2**23, total_elapsed_time=np.float64(12.5)),
            "net": ema if net is None else net,
            "loss_fn": EasyDict(P_mean=-0.8, P_std=np.float32(1.6)),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-5}]},
            "ema": ema,
        }
        torch.save(content, path)
    return path


class Persistent:
    """What EDM's persistence pickles for a module: the source of its class, and its state."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __reduce__(self) -> Any:
        state = {k: v for k, v in self.module.__dict__.items() if not k.startswith(("_backward", "_forward", "_state"))}
        state["_modules"] = {k: Persistent(m) for k, m in self.module._modules.items()}
        meta = EasyDict(type="class", version=6, module_src="raise SystemExit", class_name="Precond", state=state)
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


def as_modules(state: dict[str, Tensor]) -> nn.Module:
    """Modules whose state dict this is."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        if last in ("freqs", "phases"):
            module.register_buffer(last, tensor)
        else:
            module.register_parameter(last, nn.Parameter(tensor))
    return root


def write_network(path: Path, state: dict[str, Tensor]) -> Path:
    """A snapshot of EDM's kind."""

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise AssertionError("its source must never be run")

    with importable(
        dnnlib={},
        dnnlib__util={"EasyDict": EasyDict},
        torch_utils={},
        torch_utils__persistence={"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
    ):
        content = EasyDict(ema=Persistent(as_modules(state)), dataset_kwargs=EasyDict(resolution=np.int64(64)))
        path.write_bytes(pickle.dumps(content))
    return path
