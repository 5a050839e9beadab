"""Where a component computes."""

import os

import torch


def pick_device(name: str) -> torch.device:
    """The device that `runtime.device` names; "auto" is CUDA where there is one. Each process has its own GPU."""
    if name not in ("auto", "cuda"):
        return torch.device(name)
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
