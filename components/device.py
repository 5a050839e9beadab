"""Where a component computes, and in how many processes."""

import os

import torch

from components.params import Params
from invfusion.errors import ConfigError


def check_device(params: Params) -> None:
    """Raise `ConfigError` where this machine lacks the device that `runtime.device` names."""
    if params.runtime.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "runtime.device: 'cuda', but PyTorch finds no GPU here: set it to auto or cpu, or see whether the driver "
            "(`nvidia-smi`) and PyTorch's CUDA (`python -c 'import torch; print(torch.version.cuda)'`) fit together"
        )


def is_on_gpu(name: str) -> bool:
    """Whether the device that `runtime.device` names is a GPU; "auto" is one where there is any."""
    return name == "cuda" or (name == "auto" and torch.cuda.is_available())


def pick_device(name: str) -> torch.device:
    """The device that `runtime.device` names. Each process has its own GPU."""
    if not is_on_gpu(name):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def n_processes(params: Params) -> int:
    """How many processes share training's batches, and evaluation's: `runtime.processes`.

    "auto" is one on a GPU, and on a CPU the largest number that shares a step's micro-batches evenly and has a thread
    for each.
    """
    if params.runtime.processes != "auto":
        return params.runtime.processes
    if pick_device(params.runtime.device).type != "cpu":
        return 1
    n_parts = params.train.batch_size // params.train.micro_batch_size
    return max(n for n in range(1, torch.get_num_threads() + 1) if n_parts % n == 0)


def threads_each(n: int) -> int:
    """The CPU threads of each of n processes that share what this one has."""
    return max(1, torch.get_num_threads() // n)
