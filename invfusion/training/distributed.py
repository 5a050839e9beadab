"""The processes of one training run: torchrun's, or this one alone."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """rank of world_size processes; a lone process needs no process group."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as all processes train it together."""
        if self.world_size == 1:
            return model
        with warnings.catch_warnings():
            # The oldest torch that will do does not know its successor.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(model, broadcast_buffers=False)

    def sync(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients in the last micro-batch of a step only."""
        if last or not isinstance(model, DistributedDataParallel):
            return contextlib.nullcontext()
        waiting: AbstractContextManager[None] = model.no_sync()
        return waiting

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor of any shape over all processes."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0) if self.world_size > 1 else flag

    def from_first(self, count: int) -> int:
        """The count of rank 0."""
        return int(self.sum(torch.tensor(count if self.rank == 0 else 0, device=self.device)))

    def barrier(self) -> None:
        """Wait until every process has come this far."""
        self.any(False)


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started (NCCL on GPUs, gloo on CPUs), or this one alone."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, device)
    finally:
        dist.destroy_process_group()
