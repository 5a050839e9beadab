"""Memory of a training step, with activations kept and computed again."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.records import Record, rounded
from benchmarks.setting import Setting
from invfusion.models import checkpoint_activations
from invfusion.training.distributed import Processes
from invfusion.training.step import Stepper

MIB = 2**20


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
            yield {
                "suite": "memory",
                "preset": setting.name,
                "recomputes": recomputes,
                "images": setting.batch_size,
                "parameters_mib": rounded(sum(p.nbytes for p in denoiser.parameters()) / MIB),
                "kept_mib_per_image": rounded(_kept_bytes(stepper, setting) / setting.batch_size / MIB),
                "peak_mib": _peak(stepper, setting),
            }


def _kept_bytes(stepper: Stepper, setting: Setting) -> int:
    """Bytes that autograd keeps in one step, each storage once, without the parameters themselves."""
    own = {p.untyped_storage().data_ptr() for p in stepper.denoiser.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stepper.step(0, setting.batches())
    return sum(kept.values())


def _peak(stepper: Stepper, setting: Setting) -> float | None:
    """The peak of a second step, when the optimizer's state is there; None on a CPU, where nobody counts it."""
    if setting.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(setting.device)
    stepper.step(setting.batch_size, setting.batches())
    return rounded(torch.cuda.max_memory_allocated(setting.device) / MIB)
