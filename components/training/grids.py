"""Pictures of a model in training: a few validation images, measured and restored."""

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from invfusion import codec
from invfusion.data import StagedDataset
from invfusion.measuring import Streams, measure_batch
from invfusion.models import Denoiser
from invfusion.operators import Measurement
from invfusion.rng import generators, randn
from invfusion.samplers import AnySampler, Sampler
from invfusion.training.task import Task

N_IMAGES = 8
SCALE = 4
SAMPLER: TypeAdapter[Sampler] = TypeAdapter(AnySampler)


def restoration_grid(dataset: StagedDataset, task: Task, denoiser: Denoiser, sampler: Sampler) -> np.ndarray:
    """Rows: truth, H_pinv y, restoration; (H, W, C) uint8. Unconditional models show samples alone.

    Labels are left out.
    """
    device = next(denoiser.parameters()).device
    x = codec.decode(dataset.read(range(min(N_IMAGES, len(dataset))))).to(device)
    measurement = _measure(task, x)
    draws = generators(task.seed, "grid/noise", range(len(x)))
    noise = randn(tuple(x.shape[1:]), draws, device)
    with torch.inference_mode():
        restored = sampler.sample(denoiser, measurement, noise, generators=draws).x
    rows = [restored] if measurement is None else [x, measurement.H_pinv_y, restored]
    return _tile(torch.stack(rows))


def _measure(task: Task, x: Tensor) -> Measurement | None:
    if task.degradation is None:
        return None
    return measure_batch(x, task.degradation, task.noise, 0, task.seed, Streams("grid/operator", "grid/measurement"))


def _tile(images: Tensor) -> np.ndarray:
    """(rows, columns, C, H, W) in [-1, 1] -> one picture (H, W, C) uint8, each pixel enlarged."""
    picture = codec.encode(images).cpu().permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return np.asarray(picture.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1))
