"""Switches that make a denoiser faster or smaller and leave its weights' names alone."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from invfusion.models.attention import mark_constants
from invfusion.models.denoiser import Denoiser
from invfusion.models.feature_degradation import FeatureDegradation
from invfusion.models.hdit import Layer

# Graphs of one network: each kind of operator and stride has its own, in training and in sampling.
MAX_GRAPHS = 64
# Images that must pass through a network, by kind of device, before compilation has paid: forward passes, of which a
# training image counts as three. Measured with FFHQ64 on one H200 and the default preset on two CPU cores.
PAYS_FROM = {"cuda": 100_000, "cpu": 1_000_000}
TRAINING_PASSES = 3

log = logging.getLogger(__name__)


def missing_compiler(device_type: str) -> str | None:
    """What torch.compile lacks on this machine; None where it can compile."""
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if compiler() else "no C++ compiler is found (CXX, g++, clang++)"


def compiler() -> str | None:
    """The path of the C++ compiler that torch.compile would use."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def compiles(wanted: bool | Literal["auto"], device: torch.device, passes: int) -> bool:
    """Whether to compile a network through which so many images will pass ("auto": where that pays).

    Without a compiler a network runs eager, which one line of the log says where compilation was asked for.
    """
    missing = missing_compiler(device.type)
    if wanted is True and missing is not None:
        log.warning("networks run eager, since they cannot be compiled: %s", missing)
    return missing is None and is_to_compile(wanted, device.type, passes)


def is_to_compile(wanted: bool | Literal["auto"], device_type: str, passes: int) -> bool:
    """The same of a machine that has a compiler."""
    return passes >= PAYS_FROM.get(device_type, passes + 1) if wanted == "auto" else wanted


def compile_denoiser(denoiser: Denoiser, device: torch.device) -> None:
    """Compile what pays on the device.

    On a GPU each layer by itself, which takes a minute whatever the operators; on a CPU, where Python between the
    graphs costs more, the whole network.
    """
    (compile_layers if device.type == "cuda" else compile_network)(denoiser)


def compile_network(denoiser: Denoiser, backend: str = "inductor", fullgraph: bool = False) -> None:
    """Run the raw network through torch.compile from now on, operators inside the graph.

    Ours make no graph breaks, which `fullgraph` refuses; a user's operator that asks for values runs between graphs.
    The first batch of each operator kind and batch size waits for its compilation. Copies of the denoiser are eager.
    """
    _prepare_compiler()
    denoiser.net.compile(fullgraph=fullgraph, dynamic=False, backend=backend)


def compile_layers(denoiser: Denoiser, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each layer by itself, around its operator, instead of the whole network.

    Layers of equal shape share their graphs, which hold no operator: compilation takes a fraction of the time of
    `compile_network`, and an operator of another kind or stride costs none.
    """
    _prepare_compiler()
    for module in denoiser.modules():
        if isinstance(module, FeatureDegradation):
            module.outside_graphs = True
        if isinstance(module, Layer):
            module.compile(dynamic=False, backend=backend)


def _prepare_compiler() -> None:
    mark_constants()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)


def is_compiled(denoiser: Denoiser) -> bool:
    """Whether any part of it runs through torch.compile."""
    return any(module._compiled_call_impl is not None for module in denoiser.modules())


def lower_precision(denoiser: Denoiser, dtype: torch.dtype = torch.bfloat16) -> None:
    """Store the weights of the trunk's linear maps in `dtype` and run the trunk under autocast to it; for sampling.

    The conditioning, norms, feature degradation and the preconditioning around the network stay in float32.
    """
    exact = {denoiser.net.conditioning, *(m for m in denoiser.net.modules() if isinstance(m, FeatureDegradation))}
    kept = {part for module in exact for part in module.modules()}
    for module in denoiser.net.modules():
        if isinstance(module, nn.Linear) and module not in kept:
            module.to(dtype)
    denoiser.trunk_dtype = dtype
