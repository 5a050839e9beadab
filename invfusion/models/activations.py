"""What a training step keeps for its backward pass, counted from shapes alone, and which layers it computes again where
that is too much."""

import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from invfusion.models.attention import neighbourhood_mask
from invfusion.models.config import DenoiserConfig
from invfusion.models.denoiser import Denoiser
from invfusion.models.hdit import HDiT, Layer
from invfusion.operators import Measurement, StridedConvolution

GIB = 2**30
# Of a parameter in training: weight and gradient, Adam's two moments, and the moving average, in float32.
TRAINING_BYTES = 20
# What layers that are compiled one by one keep of what eager ones do: on an H200 all that FFHQ64 and FFHQ256 keep fell
# to 0.64 and 0.63 of what is counted (benchmarks/results/cuda.json); a tenth more is taken.
COMPILED = 0.7
# Of a GPU's memory: the rest goes into gaps between what is allocated, and to the Gaussian posterior.
USABLE = 0.9

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """Bytes that a network keeps in one call of training.

    fixed: whatever the number of images; image: of each; layers: of each image, by name of a layer, what is not kept
    where the layer is computed again.
    """

    fixed: int
    image: int
    layers: dict[str, int]

    @cached_property
    def order(self) -> list[str]:
        """The layers, those first that keep most: the finest."""
        return sorted(self.layers, key=lambda name: -self.layers[name])

    def by_compiled_layers(self) -> "Kept":
        """The same where each layer is compiled by itself, as on a GPU."""
        layers = {name: round(COMPILED * size) for name, size in self.layers.items()}
        return Kept(self.fixed, self.image - sum(self.layers.values()) + sum(layers.values()), layers)

    def of(self, n_images: int, n_recomputed: int = 0, n_calls: int = 1) -> int:
        """Of so many calls on a batch, with the first so many layers of `order` computed again: the backward pass holds
        one of these at a time."""
        freed = [self.layers[name] for name in self.order[:n_recomputed]]
        return n_calls * (self.fixed + n_images * (self.image - sum(freed))) + n_images * max(freed, default=0)

    def share(self, n_recomputed: int) -> float:
        """Of what all layers keep, that of the first so many of `order`: about their share of the arithmetic."""
        return sum(self.layers[name] for name in self.order[:n_recomputed]) / sum(self.layers.values())

    def fewest(self, n_images: int, budget: float, n_calls: int = 1) -> int:
        """How many layers to compute again so that at most so many bytes are kept: all where that is not enough."""
        counts = range(len(self.layers) + 1)
        return next((n for n in counts if self.of(n_images, n, n_calls) <= budget), counts[-1])


@cache
def kept_by_shapes(config: DenoiserConfig, dtype: torch.dtype = torch.float32) -> Kept:
    """What the network keeps under autocast to `dtype`; nothing is computed.

    It is measured by a blur of stride 2, or of stride 1, with which it keeps up to a tenth more, where a side is odd.
    The Gaussian posterior that may surround the network is not counted.
    """
    # Whether there is noise is asked of values, which are not there; a network that is told keeps a few numbers more.
    config = config.model_copy(update={"preconditioning": "edm", "sees_sigma_y": False})
    with _shapes_alone(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        one, by_one = _of_layers(HDiT(config).train(), _inputs(config, 1))
        two, by_two = _of_layers(HDiT(config).train(), _inputs(config, 2))
    layers = {name: by_two[name] - by_one[name] for name in by_one}
    return Kept(2 * one - two, two - one, layers)


def kept_bytes(model: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps in the call, each storage once, without the model's parameters."""
    return sum(storage.nbytes() for storage, _ in _kept(model, call, lambda: ""))


def _kept(model: nn.Module, call: Callable[[], Any], where: Callable[[], str]) -> list[tuple[UntypedStorage, set[str]]]:
    """Each storage that autograd keeps in the call, and all that `where` said when it was kept."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    # Held, since another storage might else be given an address again.
    kept: dict[int, tuple[UntypedStorage, set[str]]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, (storage, set()))[1].add(where())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return list(kept.values())


def _of_layers(net: HDiT, inputs: tuple[Any, ...]) -> tuple[int, dict[str, int]]:
    """All that is kept, and what is not where a layer is computed again: what it alone keeps, but for its input."""
    running, given = [""], dict[str, Tensor]()

    def begin(name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        running[0], given[name] = name, arguments[0]

    def end(*_: object) -> None:
        running[0] = ""

    for name, layer in layers_of(net).items():
        layer.register_forward_pre_hook(partial(begin, name))
        layer.register_forward_hook(end)
    kept = _kept(net, lambda: net(*inputs), lambda: running[0])
    outside = {x.untyped_storage()._cdata for x in given.values()}
    alone = dict.fromkeys(given, 0)
    for storage, names in kept:
        if len(names) == 1 and "" not in names and storage._cdata not in outside:
            alone[next(iter(names))] += storage.nbytes()
    return sum(storage.nbytes() for storage, _ in kept), alone


def layers_of(net: nn.Module) -> dict[str, Layer]:
    """The layers by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Layer)}


def _inputs(config: DenoiserConfig, n: int) -> tuple[Any, ...]:
    """What the raw network takes: n images, their noise levels, and blurred measurements of them."""
    shape = config.image_shape
    stride = 1 if shape[1] % 2 or shape[2] % 2 else 2
    operator = StridedConvolution(shape, torch.empty(n, *shape[1:]), stride=stride).prepare()
    measurement = Measurement(torch.empty(n, *operator.measurement_shape), operator)
    read = None if config.variant == "unconditional" else measurement
    return torch.empty(n, config.in_channels, *shape[1:]), torch.empty(n), read, None, None


@contextmanager
def _shapes_alone() -> Iterator[None]:
    """Tensors within have no contents; what is kept between calls is of either kind, and made anew."""
    neighbourhood_mask.cache_clear()
    try:
        with FakeTensorMode():
            yield
    finally:
        neighbourhood_mask.cache_clear()


def keep_within(
    denoiser: Denoiser,
    n_images: int,
    budget: float,
    dtype: torch.dtype = torch.float32,
    n_calls: int = 1,
    compiled: bool = False,
) -> None:
    """Have a training step of so many calls on so many images keep at most `budget` bytes, by shapes, and compute again
    what is beyond: the layers of the finest level first. Where all are not enough, that is a warning.

    compiled: whether each layer will be compiled by itself.
    """
    if budget == math.inf:
        # Counting takes seconds.
        recompute(denoiser, ())
        return
    kept = kept_by_shapes(denoiser.config, dtype)
    kept = kept.by_compiled_layers() if compiled else kept
    n = kept.fewest(n_images, budget, n_calls)
    recompute(denoiser, kept.order[:n])
    if n:
        least, all_of_it = kept.of(n_images, n, n_calls), kept.of(n_images, 0, n_calls)
        log.log(
            logging.INFO if least <= budget else logging.WARNING,
            "of %d layers %d are computed again in the backward pass: %d images keep %.1f GiB instead of %.1f, "
            "where there is room for %.1f",
            len(kept.layers), n, n_images, least / GIB, all_of_it / GIB, budget / GIB,
        )  # fmt: skip


def recompute(denoiser: Denoiser, names: Collection[str]) -> None:
    """In training, keep of these layers, and no others, the inputs alone, and compute their activations again in the
    backward pass: equal results bit for bit. names: as `Kept.layers` has them."""
    for name, layer in layers_of(denoiser.net).items():
        layer.recomputes = name in names
