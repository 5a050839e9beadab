"""How a model is trained; the defaults are the paper's (Table 6 and appendix A.1)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from invfusion.degradations import FAMILIES, DegradationConfig
from invfusion.diffusion.losses import DiffusionLoss, NPPCLoss
from invfusion.models.config import Variant
from invfusion.schema import Config

Precision = Literal["fp32", "bf16", "fp16"]


class OptimisationConfig(Config):
    """Everything about one training run but its model, data and loss. Durations are counted in images."""

    images: int = Field(default=2**25, ge=1)
    batch_size: int = Field(default=512, ge=1)
    micro_batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=5e-5, gt=0)
    warmup_images: int = Field(default=2**22, ge=0)
    decay_start_images: int = Field(default=2**24, ge=1)
    betas: tuple[float, float] = (0.9, 0.99)
    ema_half_life: int = Field(default=2**20, ge=0)
    ema_rampup: float = Field(default=0.3, gt=0)
    augment_probability: float = Field(default=0.0, ge=0, le=1)
    label_dropout: float = Field(default=0.0, ge=0, le=1)
    precision: Precision = "fp32"
    checkpoint_images: int = Field(default=2**18, ge=1)
    log_images: int = Field(default=2**14, ge=1)
    sample_grid_images: int = Field(default=2**20, ge=1)


    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}")
        return self


class TrainConfig(OptimisationConfig):
    """The diffusion models."""

    variants: list[Variant] = ["unconditional", "palette", "invfusion"]
    loss: DiffusionLoss = DiffusionLoss()


class StudentConfig(Config):
    """A smaller network: width and depth of each level, from the finest. It starts from fresh weights."""

    widths: list[int]
    depths: list[int]


class DistillTarget(Config):
    """What a distilled model changes of the teacher's training; without a student it starts from the teacher's weights."""

    images: int = Field(default=2**22, ge=1)
    lr: float = Field(default=5e-5, gt=0)
    student: StudentConfig | None = None


class MMSEConfig(DistillTarget):
    """One-step posterior mean (Eq. 7), on the teacher's own degradations."""


class NPPCConfig(DistillTarget):
    """Posterior mean and leading principal components (section 5), by default for in-painting of a single area."""

    n_components: int = Field(default=5, ge=1)
    degradation: DegradationConfig = FAMILIES["box_inpainting"]()
    loss: NPPCLoss = NPPCLoss()


class DistillConfig(Config):
    """Which one-step estimators are distilled from which trained diffusion model."""

    targets: list[Literal["mmse", "nppc"]] = ["mmse", "nppc"]
    teacher: Literal["invfusion", "palette"] = "invfusion"
    mmse: MMSEConfig = MMSEConfig()
    nppc: NPPCConfig = NPPCConfig()
