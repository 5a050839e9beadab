"""What one training run learns, and how a micro-batch of it is drawn."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from invfusion.data import Batch
from invfusion.degradations import DegradationFamily
from invfusion.diffusion.losses import Condition, LossOutput, Network
from invfusion.noise import NoiseConfig
from invfusion.operators.base import LinearOperator, Measurement
from invfusion.rng import generator
from invfusion.training.config import OptimisationConfig


class Loss(Protocol):
    """A training objective. trains_log_variance: whether it teaches the network its own uncertainty."""

    trains_log_variance: ClassVar[bool]

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """Images (B, C, H, W) in [-1, 1] -> one value for each."""
        ...

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Its settings; JSON-able where mode is "json"."""
        ...


@dataclass(frozen=True)
class Task:
    """What one run trains.

    degradation: None for unconditional training; noise: of the measurements; fingerprint: names everything that defines
    the run, so that no other run's state is continued.
    """

    loss: Loss
    degradation: DegradationFamily | None
    noise: NoiseConfig
    config: OptimisationConfig
    seed: int
    fingerprint: str = ""


def draw_operator(task: Task, batch_size: int, image_shape: tuple[int, ...], index: int) -> LinearOperator | None:
    """The CPU operator of a micro-batch that begins at image count `index`; None for unconditional training."""
    if task.degradation is None:
        return None
    draws = generator(task.seed, "train/operator", index)
    return task.degradation.sample(batch_size=batch_size, image_shape=image_shape, generator=draws)


def draw_measurement(task: Task, x: Tensor, index: int) -> Measurement | None:
    """The measurement of a micro-batch that begins at image count `index`; None for unconditional training."""
    operator = draw_operator(task, len(x), tuple(x.shape[1:]), index)
    return None if operator is None else measure(task, x, operator.to(x.device), index)


def measure(task: Task, x: Tensor, operator: LinearOperator, index: int) -> Measurement:
    """What an operator on the images' device sees of them, with the noise that belongs to image count `index`."""
    return task.noise.measure(x, operator, generator(task.seed, "train/measurement-noise", index))


def draw_class_labels(task: Task, batch: Batch, n_classes: int, index: int) -> Tensor | None:
    """(B,) labels, of which `label_dropout` are replaced by n_classes, "no class"; None for a model without classes."""
    if n_classes == 0:
        return None
    draws = torch.rand(len(batch), generator=generator(task.seed, "train/label-dropout", index))
    unknown = (draws < task.config.label_dropout) | (batch.labels < 0)
    return batch.labels.masked_fill(unknown, n_classes)
