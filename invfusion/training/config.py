"""How a model is trained; the defaults are the paper's (Table 6 and appendix A.1)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from invfusion.diffusion.losses import DiffusionLoss
from invfusion.errors import ConfigError
from invfusion.schema import Config

Precision = Literal["fp32", "bf16", "fp16"]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Size = Annotated[int, Field(ge=1)]


class OptimisationConfig(Config):
    """Everything about one training run but its model, data and loss. Durations are counted in images.

    images: of the whole training; batch_size: images of one update; micro_batch_size: of one pass through the network,
    of which a batch holds a whole number. lr: the highest rate; warmup_images: over which the rate rises linearly;
    decay_start_images: after which it falls with the inverse square root of the image count. betas: of Adam.
    augment_probability: of each augmentation; 0 also turns off the mirroring. label_dropout: the share of class labels
    hidden, for guidance. checkpoint_images: between two checkpoints; log_images: between two lines of the loss log.
    """

    images: Size = 2**25
    batch_size: Size = 512
    micro_batch_size: Size = 64
    lr: float = Field(default=5e-5, gt=0)
    warmup_images: int = Field(default=2**22, ge=0)
    decay_start_images: Size = 2**24
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    ema_half_life: int = Field(default=2**20, ge=0)
    ema_rampup: float = Field(default=0.3, gt=0)
    augment_probability: float = Field(default=0.0, ge=0, le=1)
    label_dropout: float = Field(default=0.0, ge=0, le=1)
    precision: Precision = "fp32"
    checkpoint_images: Size = 2**18
    log_images: Size = 2**14
    sample_grid_images: Size = 2**20

    @property
    def total_images(self) -> int:
        """`images`, rounded up to whole batches."""
        return -(-self.images // self.batch_size) * self.batch_size

    def check_sharing(self, n_processes: int) -> None:
        """Raise `ConfigError` unless that many processes can share a batch evenly."""
        n_micro = self.batch_size // self.micro_batch_size
        if n_micro % n_processes:
            raise ConfigError(
                f"batch_size / micro_batch_size = {n_micro} micro-batches cannot be shared evenly by {n_processes} "
                "processes; choose a smaller train.micro_batch_size or another number of processes"
            )

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class TrainConfig(OptimisationConfig):
    """What is trained, and how, where a model's own recipe does not say otherwise.

    models: with fresh weights. distilled: {model: the one of `models` that it starts from}. loss: of diffusion models.
    """

    models: list[str] = Field(default=["unconditional", "palette", "invfusion"], min_length=1)
    distilled: dict[str, str] = Field(default={"mmse": "invfusion", "nppc": "invfusion"})
    loss: DiffusionLoss = DiffusionLoss()
