"""What one training run learns, and how a micro-batch of it is drawn."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from invfusion.data import Batch
from invfusion.degradations import DegradationFamily
from invfusion.diffusion.losses import Condition, LossOutput, Network
from invfusion.measuring import Streams, measure_batch
from invfusion.noise import AnyNoise
from invfusion.operators.base import Measurement
from invfusion.rng import generator
from invfusion.training.config import OptimisationConfig

STREAMS = Streams("train/operator", "train/measurement-noise")


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
    noise: AnyNoise
    config: OptimisationConfig
    seed: int
    fingerprint: str = ""


def draw_measurement(task: Task, x: Tensor, index: int) -> Measurement | None:
    """The measurement of a micro-batch x (B, C, H, W) that begins at image count `index`; None if unconditional."""
    if task.degradation is None:
        return None
    return measure_batch(x, task.degradation, task.noise, index, task.seed, STREAMS)


def draw_class_labels(task: Task, batch: Batch, n_classes: int, index: int) -> Tensor | None:
    """(B,) labels, of which `label_dropout` are replaced by n_classes, "no class"; None for a model without classes."""
    if n_classes == 0:
        return None
    draws = torch.rand(len(batch), generator=generator(task.seed, "train/label-dropout", index))
    unknown = (draws < task.config.label_dropout) | (batch.labels < 0)
    return batch.labels.masked_fill(unknown, n_classes)
