"""Pictures of a model in training: a few validation images, measured and restored."""

import numpy as np
import torch

from invfusion import codec
from invfusion.config import Params
from invfusion.data import StagedDataset
from invfusion.models import Denoiser
from invfusion.operators import Measurement
from invfusion.rng import generator, generators, randn
from invfusion.samplers import HeunConfig
from invfusion.training.loop import Task

N_IMAGES = 8
N_STEPS = 8
SCALE = 4


def restoration_grid(dataset: StagedDataset, task: Task, denoiser: Denoiser) -> np.ndarray:
    """Rows: truth, H_pinv y, restoration by a few Heun steps; (H, W, C) uint8. Unconditional models show samples alone."""
    x = codec.decode(dataset.read(range(min(N_IMAGES, len(dataset)))))
    measurement = None
    rows = []
    if task.degradation is not None:
        operator = task.degradation.sample(
            batch_size=len(x), image_shape=tuple(x.shape[1:]), generator=generator(task.seed, "grid/operator")
        )
        noise = randn(operator.measurement_shape, generators(task.seed, "grid/measurement", range(len(x))))
        measurement = Measurement.of(x, operator, task.sigma_y[0], noise)
        rows = [x, measurement.H_pinv_y]
    draws = generators(task.seed, "grid/noise", range(len(x)))
    noise = randn(tuple(x.shape[1:]), draws)
    with torch.inference_mode():
        rows.append(HeunConfig(n_steps=N_STEPS).sample(denoiser, measurement, noise, generators=draws).x)
    grid = torch.stack([codec.encode(row) for row in rows])  # (rows, B, C, H, W)
    picture = grid.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return np.asarray(picture.repeat_interleave(SCALE, 0).repeat_interleave(SCALE, 1))
