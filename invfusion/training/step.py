"""One optimiser step: micro-batches, gradients, the update. A pure function of (seed, image count, state)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from invfusion import codec
from invfusion.data import Batch
from invfusion.diffusion.losses import Condition, LossOutput, Network
from invfusion.errors import NonFiniteError
from invfusion.measuring import observe
from invfusion.models import Denoiser
from invfusion.operators.base import LinearOperator
from invfusion.rng import derive_seed, generator, upload
from invfusion.training.augment import augment
from invfusion.training.checkpoint import moments_of, restore_moments
from invfusion.training.distributed import Processes
from invfusion.training.draws import OperatorDraws
from invfusion.training.schedule import learning_rate
from invfusion.training.task import STREAMS, Task, draw_class_labels

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Adam's, of losses that are sums over an image's numbers, as published. Ours are means, whose gradients are smaller by
# that number: with an epsilon as much smaller the steps are the same.
EPSILON = 1e-8
# With fp16 an overflow now and then is normal, and halves the loss scale; so many in a row are not (2^16 down to 2^-8).
MAX_OVERFLOWS = 24


def micro_batch_loss(
    task: Task, network: Network, batch: Batch, operator: LinearOperator | None, n_classes: int, index: int
) -> LossOutput:
    """The loss of the micro-batch that begins at image count `index`; all lies on the network's device."""
    x, augment_labels = augment(
        codec.decode(batch.images), task.config.augment_probability, generator(task.seed, "train/augment", index)
    )
    labels = draw_class_labels(task, batch, n_classes, index)
    measurement = None if operator is None else observe(x, operator, task.noise, index, task.seed, STREAMS)
    condition = Condition(measurement, None if labels is None else labels.to(x.device), augment_labels, index)
    return task.loss(network, x, condition, generator(task.seed, "train/noise", index))


@contextmanager
def seeded_dropout(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout layers draw from torch's global generators alone: seed those for a while, then put them back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


class Stepper:
    """Optimiser, gradient scaler and data-parallel wrapper around one denoiser.

    n_threads: background threads that draw operators ahead.
    """

    def __init__(
        self, task: Task, denoiser: Denoiser, processes: Processes, device: torch.device, n_threads: int = 0
    ) -> None:
        self.task, self.denoiser, self.processes, self.device = task, denoiser, processes, device
        denoiser.log_variance.requires_grad_(task.loss.trains_log_variance)
        self.parameters = [p for p in denoiser.parameters() if p.requires_grad]
        self.model = processes.wrap(denoiser)
        config = task.config
        stride = config.micro_batch_size * processes.world_size
        self.draws = OperatorDraws(task, denoiser.image_shape, stride, device, n_threads)
        epsilon = EPSILON / torch.Size(denoiser.image_shape).numel()
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr, betas=config.betas, eps=epsilon, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.overflows = 0

    def step(self, nimg: int, batches: Iterator[Batch]) -> dict[str, float]:
        """Train on the global batch that begins at image count `nimg`; returns its averaged loss and other numbers.

        Raises:
            NonFiniteError: names the image count and the samples' keys; the weights are then as before.
        """
        config, group = self.task.config, self.processes
        starts = range(nimg, nimg + config.batch_size, config.micro_batch_size)[group.rank :: group.world_size]
        parts = [self._accumulate(next(batches), start, last=start == starts[-1]) for start in starts]
        numbers = self._averages([output for _, output in parts])
        self._check(numbers, nimg, parts)
        self._update(nimg)
        return numbers

    def _accumulate(self, batch: Batch, start: int, last: bool) -> tuple[list[str], LossOutput]:
        config, group = self.task.config, self.processes
        seed = derive_seed(self.task.seed, "train/dropout", start)
        moved = Batch(upload(batch.images, self.device), batch.keys, batch.labels)
        operator = self.draws(start)
        with group.sync(self.model, last), seeded_dropout(seed, self.device):
            output = micro_batch_loss(self.task, self._network, moved, operator, self.denoiser.n_classes, start)
            # Data-parallel gradients are averaged over the processes; the loss is a mean over the global batch.
            loss = output.per_sample.sum() * (group.world_size / config.batch_size)
            torch.autograd.backward(self.scaler.scale(loss))
        return batch.keys, LossOutput(output.per_sample.detach(), output.logs)

    def _network(self, *inputs: Any, **switches: Any) -> Any:
        """The network alone runs in low precision; losses and operators stay in float32."""
        precision = self.task.config.precision
        with torch.autocast(self.device.type, DTYPES[precision], enabled=precision != "fp32"):
            return self.model(*inputs, **switches)

    def _averages(self, outputs: list[LossOutput]) -> dict[str, float]:
        """Loss and logs over the global batch, and the gradient's norm; the one point where a GPU is waited for."""
        names = ["loss", *outputs[0].logs]
        rows = [torch.stack([output.per_sample, *output.logs.values()]).sum(1) for output in outputs]
        averages = self.processes.sum(torch.stack(rows).sum(0) / self.task.config.batch_size)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return dict(zip([*names, "grad_norm"], torch.cat([averages, norm.view(1)]).tolist(), strict=True))

    def _check(self, numbers: dict[str, float], nimg: int, parts: list[tuple[list[str], LossOutput]]) -> None:
        loss_is_finite, gradient_is_finite = math.isfinite(numbers["loss"]), math.isfinite(numbers["grad_norm"])
        self.overflows = 0 if gradient_is_finite else self.overflows + 1
        if loss_is_finite and self.overflows <= (MAX_OVERFLOWS if self.scaler.is_enabled() else 0):
            return
        self.optimizer.zero_grad()
        what = "gradient" if loss_is_finite else "loss"
        raise NonFiniteError(
            f"the {what} is not finite after {nimg} images (loss {numbers['loss']}, gradient norm "
            f"{numbers['grad_norm']}), in the batch with the samples {_suspects(parts)}; look at these, or lower the "
            "learning rate. The last checkpoint is intact, and the same command goes on from it"
        )

    def _update(self, nimg: int) -> None:
        config = self.task.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(nimg, config.lr, config.warmup_images, config.decay_start_images)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's moments, as `<parameter index>/<name>`."""
        return moments_of(self.optimizer)

    def scalars(self) -> dict[str, Any]:
        """The rest of the state; JSON-able."""
        return {"scaler": self.scaler.state_dict(), "overflows": self.overflows}

    def restore(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Take back what `tensors` and `scalars` gave."""
        restore_moments(self.optimizer, tensors)
        self.scaler.load_state_dict(scalars["scaler"])
        self.overflows = scalars["overflows"]


def _suspects(parts: list[tuple[list[str], LossOutput]]) -> str:
    """The samples whose own loss is not finite; where there are none, all samples that this process saw in the step."""
    everyone = [key for keys, _ in parts for key in keys]
    finite = torch.cat([torch.isfinite(output.per_sample) for _, output in parts]).tolist()
    bad = [key for key, fine in zip(everyone, finite, strict=True) if not fine]
    return ", ".join(bad or everyone)
