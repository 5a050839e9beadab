"""How one model is trained: what a recipe declares, and what it may change of the usual training."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field

from invfusion.errors import ConfigError
from invfusion.gaussian import GaussianPrior
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig
from invfusion.noise import AnyNoise
from invfusion.schema import Config
from invfusion.training.task import Task

Size = Annotated[int, Field(ge=1)]


class Recipe(Config):
    """A diffusion model with fresh weights, trained on the usual task; its fields are settings of this recipe alone.

    name: in params.yaml, and of the model's folder. label: in tables. given: what of a measurement the network sees.
    sees_measurements: whether it is trained on measurements at all; samplers restore with one that is not (zero-shot).
    architecture: the fields of `DenoiserConfig` that make this model. is_diffusion: whether it denoises at every noise
    level, as samplers and further training need it. starts_from: the model whose weights training starts from.
    target_calls: network calls without gradients that make the target of a training image.
    reads_out: settings of the sampler that restores with the model, in the pictures that its training shows.
    noise: of the measurements that it is trained on, in place of that of all models.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    given: ClassVar[str]
    architecture: ClassVar[Mapping[str, Any]]
    is_diffusion: ClassVar[bool] = True
    sees_measurements: ClassVar[bool] = True
    starts_from: ClassVar[str | None] = None
    target_calls: ClassVar[int] = 0

    noise: AnyNoise | None = None

    @property
    def reads_out(self) -> dict[str, Any]:
        return {"kind": "heun", "n_steps": 8}

    @property
    def settings(self) -> dict[str, Any]:
        """Its fields as JSON, without the noise, which is a part of the task."""
        return self.model_dump(mode="json", exclude={"noise"})

    def task(self, usual: Task) -> Task:
        """What is learnt, made of the usual task: the diffusion loss on measured images."""
        return usual

    def network(self, config: DenoiserConfig, seed: int, prior: GaussianPrior | None = None) -> Denoiser:
        """The network before training; `config` has this recipe's architecture, `prior` is for "gaussian" alone."""
        return Denoiser(config, seed, prior)


class StudentConfig(Config):
    """A smaller network: width and depth of each level, from the finest. It starts from fresh weights."""

    widths: list[Size]
    depths: list[Size]


class Distillation(Recipe):
    """Training that goes on from a trained diffusion model, with its own length and rate.

    student: instead of the trained network, a smaller one with fresh weights.
    """

    architecture: ClassVar[Mapping[str, Any]] = {}
    is_diffusion: ClassVar[bool] = False
    starts_from: ClassVar[str | None] = "invfusion"

    images: Size = 2**22
    lr: float = Field(default=5e-5, gt=0)
    warmup_images: int = Field(default=2**18, ge=0)
    student: StudentConfig | None = None

    @classmethod
    def can_start_from(cls, other: type[Recipe]) -> bool:
        """Whether that model serves as the start: a diffusion model that is given the measurement."""
        return other.is_diffusion and other.architecture["variant"] != "unconditional"

    def task(self, usual: Task) -> Task:
        changes = {"images": self.images, "lr": self.lr, "warmup_images": self.warmup_images}
        return replace(usual, config=usual.config.model_copy(update=changes))

    def network_from(self, start: Denoiser, seed: int) -> Denoiser:
        """The trained network itself, or the student of its kind. Raises `ConfigError` where their levels differ."""
        if self.student is None:
            return start
        return Denoiser(self._student_config(self.student, start.config), seed, start.prior)

    def _student_config(self, student: StudentConfig, config: DenoiserConfig) -> DenoiserConfig:
        n = len(config.levels)
        if not len(student.widths) == len(student.depths) == n:
            raise ConfigError(
                f"recipes.{self.name}: a student needs {n} widths and {n} depths, one for each level of its teacher"
            )
        sizes = zip(config.levels, student.widths, student.depths, strict=True)
        levels = tuple(LevelConfig(width=width, depth=depth, kernel=level.kernel) for level, width, depth in sizes)
        return DenoiserConfig.model_validate({**dict(config), "levels": levels})
