"""Memory of a training step, with activations kept and computed again, and the batch that 80 GB should hold."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.records import Record, rounded
from benchmarks.setting import Setting
from invfusion.models import build_denoiser, denoiser_config, kept_by_shapes, recompute
from invfusion.models.activations import TRAINING_BYTES, kept_bytes, layers_of
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
            recompute(denoiser, layers_of(denoiser.net) if recomputes else ())
            stepper = Stepper(setting.task("strided_motion_blur"), denoiser.train(), Processes(), device)
            kept = kept_bytes(denoiser, partial(stepper.step, 0, setting.batches()))
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
        config = denoiser_config(preset)
        kept = kept_by_shapes(config, torch.bfloat16)
        with torch.device("meta"):
            fixed = kept.fixed + TRAINING_BYTES * sum(p.numel() for p in build_denoiser(config).parameters())
        yield {
            "suite": "capacity",
            "preset": preset,
            "fixed_mib": rounded(fixed / MIB),
            "kept_mib_per_image": rounded(kept.image / MIB),
            "largest_batch": int((CARD - fixed) // kept.image),
        }


def _peak(stepper: Stepper, setting: Setting) -> float | None:
    """The peak of a second step, when the optimizer's state is there; None on a CPU, where nobody counts it."""
    if setting.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(setting.device)
    stepper.step(setting.batch_size, setting.batches())
    return rounded(torch.cuda.max_memory_allocated(setting.device) / MIB)
