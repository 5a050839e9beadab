"""Memory of a training step, with activations kept and computed again, and the batch that 80 GB should hold."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.records import Record, rounded
from benchmarks.setting import Setting
from invfusion.models import Denoiser, build_denoiser, checkpoint_activations
from invfusion.models.attention import neighbourhood_mask
from invfusion.operators import Measurement, StridedConvolution
from invfusion.training.distributed import Processes
from invfusion.training.step import Stepper

MIB = 2**20
# Bytes of the card that the goals name.
CARD = 80e9


def memory(
    device: torch.device,
    seconds: float,  # noqa: ARG001 - every suite has the same form
    presets: Sequence[str] = ("digits16", "ffhq64", "imagenet64", "ffhq256"),
) -> Iterator[Record]:
    """What a step keeps for its backward pass, per image, and the peak of a GPU's memory."""
    for preset in presets:
        setting = Setting(preset, device)
        for recomputes in (False, True):
            denoiser = setting.denoiser("invfusion")
            checkpoint_activations(denoiser, recomputes)
            stepper = Stepper(setting.task("strided_motion_blur"), denoiser.train(), Processes(), device)
            kept = _kept_bytes(denoiser, partial(stepper.step, 0, setting.batches()))
            yield {
                "suite": "memory",
                "preset": setting.name,
                "recomputes": recomputes,
                "images": setting.batch_size,
                "parameters_mib": rounded(sum(p.nbytes for p in denoiser.parameters()) / MIB),
                "kept_mib_per_image": rounded(kept / setting.batch_size / MIB),
                "peak_mib": _peak(stepper, setting),
            }


def capacity(device: torch.device, seconds: float) -> Iterator[Record]:  # noqa: ARG001 - nothing is computed
    """The largest batch of a whole preset for which what a training step keeps fits in 80 GB, from shapes alone.

    Weights, gradients, Adam's two moments and the average take 20 bytes per parameter. What a step allocates and frees
    again is not counted, nor what attention's backend needs for itself, so that a card holds somewhat less.
    """
    for preset in ("ffhq64", "imagenet64", "ffhq256"):
        one, two, n_parameters = _kept_by_shapes(preset)
        # Casts of the weights are kept whatever the batch.
        per_image, fixed = two - one, 2 * one - two + 20 * n_parameters
        yield {
            "suite": "capacity",
            "preset": preset,
            "fixed_mib": rounded(fixed / MIB),
            "kept_mib_per_image": rounded(per_image / MIB),
            "largest_batch": int((CARD - fixed) // per_image),
        }


def _kept_by_shapes(preset: str) -> tuple[int, int, int]:
    """Bytes kept of one image and of two in bf16, and the number of parameters; nothing is allocated or computed."""
    neighbourhood_mask.cache_clear()
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        denoiser = build_denoiser(preset).train()
        one, two = (_kept_bytes(denoiser, partial(denoiser, *_inputs(denoiser.config.image_shape, n))) for n in (1, 2))
    neighbourhood_mask.cache_clear()
    return one, two, sum(p.numel() for p in denoiser.parameters())


def _inputs(shape: tuple[int, int, int], n: int) -> tuple[Tensor, Tensor, Measurement]:
    """What a network takes: n images, their noise levels, and blurred measurements of them."""
    operator = StridedConvolution(shape, torch.empty(n, *shape[1:]), stride=2).prepare()
    y, sigma = torch.empty(n, *operator.measurement_shape), torch.empty(n)
    return torch.empty(n, *shape), sigma, Measurement(y, operator, sigma)


def _kept_bytes(denoiser: Denoiser, call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps in the call, each storage once, without the parameters themselves."""
    own = {p.untyped_storage()._cdata for p in denoiser.parameters()}
    kept: dict[int, UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values())


def _peak(stepper: Stepper, setting: Setting) -> float | None:
    """The peak of a second step, when the optimizer's state is there; None on a CPU, where nobody counts it."""
    if setting.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(setting.device)
    stepper.step(setting.batch_size, setting.batches())
    return rounded(torch.cuda.max_memory_allocated(setting.device) / MIB)
