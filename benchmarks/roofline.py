"""What a training step must take at least, from bytes and FLOPs: python -m benchmarks.roofline writes the table.

Nothing is computed: the network runs on tensors without contents, and every kernel of an eager step takes the longer of
its arithmetic and its traffic. That bounds from below what eager kernels can reach, and shows which of them to fuse.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.document import PERFORMANCE, update
from benchmarks.lease.speed import maps_of
from benchmarks.records import Record, rounded
from invfusion.models import build_denoiser
from invfusion.models.attention import neighbourhood_mask
from invfusion.operators import Measurement, StridedConvolution

OUTPUT = Path("benchmarks/results/roofline.json")
# Images of a network call, as a lease measures them.
IMAGES = {"ffhq64": 128, "imagenet64": 128, "ffhq256": 64}
# Bytes that a parameter's update moves: Adam reads weight, gradient and moments, and writes all but the gradient; the
# average is read with the weight, and written.
UPDATE = 28 + 12


@dataclass(frozen=True)
class Card:
    """Products per second in FLOPs by precision, and bytes per second; of dense matrices, as the maker states them."""

    bf16: float
    fp32: float
    bandwidth: float

    def seconds(self, kernel: "Kernel") -> float:
        """What a card takes that reaches the share of its maker's figures that the H200 reached: see `REACHED`."""
        speed = self.bf16 * REACHED.bf16 if kernel.is_low else self.fp32 * REACHED.fp32
        return max(kernel.flops / speed, kernel.bytes / (self.bandwidth * REACHED.bandwidth))


CARDS = {
    "H200": Card(989e12, 67e12, 4.8e12),
    "H100": Card(989e12, 67e12, 3.35e12),
    "A100 80 GB": Card(312e12, 19.5e12, 2.04e12),
    "RTX 4090": Card(165e12, 82.6e12, 1.008e12),
}
# Of the maker's figures, as measured on the H200 with products and copies of random numbers.
REACHED = Card(668.3 / 989, 50.53 / 67, 4.044 / 4.8)


@dataclass(frozen=True)
class Kernel:
    """One kernel: its FLOPs, 0 but for products and attention; bytes read and written; whether bf16 is multiplied."""

    flops: int
    bytes: int
    is_low: bool


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every kernel that runs within it; views are none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[Kernel] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        inputs, outputs = (_tensors(values) for values in ((args, kwargs), out))
        if not _is_free(function, outputs):
            moved = sum(t.nbytes for t in inputs) + sum(t.nbytes for t in outputs)
            low = any(t.dtype == torch.bfloat16 for t in inputs)
            self.found[Kernel(_flops(function, args, kwargs or {}, inputs, out), moved, low)] += 1
        return out


def _flops(function: Any, args: Any, kwargs: Any, inputs: list[Tensor], out: Any) -> int:
    """Attention's are of all queries with all keys, as a kernel with a mask computes them."""
    name = function._schema.name
    if "attention" in name:
        # Two products forward; five backward, where the output's gradient is the first argument.
        is_backward = name.endswith("backward")
        q, k = inputs[is_backward : is_backward + 2]
        return (10 if is_backward else 4) * q.numel() * k.shape[-2]
    count = flop_registry.get(function._overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count else 0


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_free(function: Any, outputs: list[Tensor]) -> bool:
    """Whether nothing is moved: a view, a detached tensor, or memory that is only allocated."""
    name = function._schema.name
    return not outputs or function.is_view or name.startswith(("aten::empty", "aten::detach", "aten::_unsafe_view"))


def parts(preset: str) -> Iterator[tuple[str, Counter[Kernel]]]:
    """The kernels of one network call of training on blur, by part; those of the maps are within the others."""
    n = IMAGES[preset]
    neighbourhood_mask.cache_clear()
    with FakeTensorMode():
        denoiser = build_denoiser(preset).train()
        shape = denoiser.config.image_shape
        operator = StridedConvolution(shape, torch.empty(n, *shape[1:]), stride=4).prepare()
        measurement = Measurement(torch.empty(n, *operator.measurement_shape), operator, torch.zeros(n))
        x, sigma = torch.empty(n, *shape), torch.empty(n)

        def forward() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                loss: Tensor = denoiser(x, sigma, measurement).square().mean()
                return loss

        yield "forward", _kernels(forward)
        yield "forward and backward", _kernels(lambda: torch.autograd.backward(forward()))
        yield "H and H_pinv, forward and backward", _kernels(maps_of(denoiser, measurement, n))
        size = UPDATE * sum(p.numel() for p in denoiser.parameters())
    neighbourhood_mask.cache_clear()
    yield "optimizer and moving average", Counter([Kernel(0, size, is_low=False)])


def _kernels(call: Callable[[], Any]) -> Counter[Kernel]:
    kernels = Kernels()
    with kernels:
        call()
    return kernels.found


def records() -> Iterator[Record]:
    """Milliseconds by card, for each preset and part."""
    for preset, n in IMAGES.items():
        found = dict(parts(preset))
        for part, kernels in found.items():
            yield {
                "suite": "roofline",
                "preset": preset,
                "part": part,
                "images": n,
                "kernels": kernels.total(),
                "gigabytes": rounded(sum(k.bytes * times for k, times in kernels.items()) / 1e9),
                "teraflops": rounded(sum(k.flops * times for k, times in kernels.items()) / 1e12),
                "ms": {name: rounded(1e3 * _seconds(card, kernels)) for name, card in CARDS.items()},
            }


def _seconds(card: Card, kernels: Counter[Kernel]) -> float:
    return sum(card.seconds(kernel) * times for kernel, times in kernels.items())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = list(records())
    OUTPUT.write_text(json.dumps({"machine": {}, "records": found}, indent=1) + "\n")
    update(PERFORMANCE, OUTPUT.parent)
    for record in found:
        logging.info("%s", record)


if __name__ == "__main__":
    main()
