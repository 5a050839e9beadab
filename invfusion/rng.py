"""Named random streams: every random number comes from a generator derived from (seed, stream, index).

Nothing here touches global random state. Generators live on the CPU, so results do not depend on the device.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive_seed(seed: int, stream: str, index: int | str = 0) -> int:
    """A 63-bit seed for one (seed, stream, index); equal inputs give equal seeds on every machine."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, stream: str, index: int | str = 0) -> torch.Generator:
    """A fresh CPU generator for one (seed, stream, index). The index may be a number or a sample key."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))


def generators(seed: int, stream: str, indices: Sequence[int | str]) -> list[torch.Generator]:
    """One generator per sample, so that a sample's draw does not depend on its neighbours in the batch."""
    return [generator(seed, stream, index) for index in indices]


def randn(
    shape: Sequence[int],
    sample_generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal (B, *shape) float32, row i drawn from generator i."""
    rows = [torch.randn(tuple(shape), generator=g) for g in sample_generators]
    return upload(torch.stack(rows), device)


def upload(drawn: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of any shape on a device. From the CPU to a GPU it goes pinned, so that the host waits for nothing."""
    if torch.device(device).type != "cuda" or drawn.is_cuda:
        return drawn.to(device)
    # What was expanded cannot be pinned as it is.
    return drawn.contiguous().pin_memory().to(device, non_blocking=True)
