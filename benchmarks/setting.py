"""What is measured, and how large: presets by name, families of degradations, batch sizes by device."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from invfusion import rng
from invfusion.data import Batch
from invfusion.degradations import FAMILIES, DegradationFamily, Mixture
from invfusion.diffusion.losses import DiffusionLoss
from invfusion.gaussian import GaussianPrior
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, build_denoiser, denoiser_config
from invfusion.noise import GaussianNoise
from invfusion.operators import LinearOperator, Measurement
from invfusion.training.config import OptimisationConfig, Precision
from invfusion.training.task import Task

# The members of the training mixture; each has the same weight.
MIXTURE = ("strided_motion_blur", "patch_inpainting", "matrix", "null")
Model = Literal["unconditional", "palette", "invfusion", "invfusion_g"]
MODELS: tuple[Model, ...] = ("unconditional", "palette", "invfusion", "invfusion_g")
# Of InvFusion-G's prior, as the profiles have it: rank and clusters.
_PRIORS = {"digits16": (256, 40), "ffhq64": (512, 1), "imagenet64": (512, 1), "ffhq256": (256, 1)}
_NARROW_PRIOR = (64, 1)

# On a CPU the paper's networks are run at a fraction of their width and depth, the largest on smaller images: the same
# code path, not the same cost.
_NARROW_64 = (
    LevelConfig(width=96, depth=1, kernel=7),
    LevelConfig(width=192, depth=1, kernel=7),
    LevelConfig(width=384, depth=1),
)
_NARROW: dict[str, dict[str, Any]] = {
    "ffhq64": {"levels": _NARROW_64, "head_dim": 32},
    "imagenet64": {"levels": _NARROW_64, "head_dim": 32},
    "ffhq256": {
        "image_size": 128,
        "levels": (
            LevelConfig(width=96, depth=1, kernel=5),
            LevelConfig(width=192, depth=1, kernel=7),
            LevelConfig(width=384, depth=1),
            LevelConfig(width=768, depth=1),
        ),
        "head_dim": 32,
    },
}
# Images of one network call: in training, in sampling.
BATCHES = {
    "cpu": {"digits16": (32, 64), "ffhq64": (2, 2), "imagenet64": (2, 2), "ffhq256": (1, 1)},
    "cuda": {"digits16": (256, 256), "ffhq64": (64, 128), "imagenet64": (64, 128), "ffhq256": (32, 64)},
}


@dataclass(frozen=True)
class Setting:
    """One preset on one device. name: of the preset, with "(narrow)" where it is not the paper's network."""

    preset: str
    device: torch.device

    @property
    def name(self) -> str:
        return f"{self.preset} (narrow)" if self._is_narrow else self.preset

    @property
    def config(self) -> DenoiserConfig:
        overrides = _NARROW[self.preset] if self._is_narrow else {}
        return denoiser_config(self.preset, **overrides)

    @property
    def batch_size(self) -> int:
        """Images of one training step."""
        return BATCHES[self.device.type][self.preset][0]

    @property
    def sampling_batch(self) -> int:
        """Images that are sampled together."""
        return BATCHES[self.device.type][self.preset][1]

    @property
    def _is_narrow(self) -> bool:
        return self.device.type == "cpu" and self.preset in _NARROW

    def denoiser(self, model: Model) -> Denoiser:
        """A network whose weights are off zero, as after training: zeros may be cheaper, and hide errors."""
        return self.cpu_denoiser(model).to(self.device)

    def cpu_denoiser(self, model: Model) -> Denoiser:
        """`denoiser` before it goes to the device."""
        if model == "invfusion_g":
            rank, clusters = _NARROW_PRIOR if self._is_narrow else _PRIORS.get(self.preset, _NARROW_PRIOR)
            prior = synthetic_prior(self.config.image_shape[1], rank, clusters)
            denoiser = build_denoiser(self.config, preconditioning="gaussian", prior=prior)
        else:
            denoiser = build_denoiser(self.config, model)
        draws = rng.generator(0, "benchmarks/weights")
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
        return denoiser

    def task(self, kind: str | None, precision: Precision = "fp32") -> Task:
        """Training on one family of degradations; "mixture" on all of them, None on none."""
        config = OptimisationConfig(
            batch_size=self.batch_size, micro_batch_size=self.batch_size, precision=precision, warmup_images=0
        )
        return Task(DiffusionLoss(), None if kind is None else family(kind), GaussianNoise(), config, seed=0)

    def batches(self) -> Iterator[Batch]:
        """Training batches that cost nothing."""
        shape = (self.batch_size, *self.config.image_shape)
        images = torch.randint(256, shape, generator=rng.generator(0, "benchmarks/images")).to(torch.uint8)
        labels = torch.zeros(len(images), dtype=torch.long)
        while True:
            yield Batch(images, [str(i) for i in range(len(images))], labels)

    def images(self, n: int) -> Tensor:
        """Some images (n, C, H, W) in [-1, 1]."""
        return rng.randn(self.config.image_shape, rng.generators(0, "benchmarks/x", range(n)), self.device).clip(-1, 1)

    def starts(self, n: int) -> Tensor:
        """Standard normal noise (n, C, H, W) that sampling starts from."""
        return rng.randn(self.config.image_shape, rng.generators(0, "benchmarks/start", range(n)), self.device)

    def measurement(self, kind: str, n: int, index: int = 0) -> Measurement:
        """What a drawn operator sees of n images."""
        return Measurement.of(self.images(n), self.operator(kind, n, index).prepare())

    def operator(self, kind: str, n: int, index: int = 0) -> LinearOperator:
        """Operators for n images, freshly drawn."""
        draws = rng.generator(0, "benchmarks/operator", index)
        return family(kind).sample(n, self.config.image_shape, draws).to(self.device)


def family(kind: str) -> DegradationFamily:
    """A family with the paper's settings, or the training mixture."""
    if kind == "mixture":
        return Mixture(members=[FAMILIES[name]() for name in MIXTURE])
    return FAMILIES[kind]()


@cache
def synthetic_prior(side: int, rank: int, clusters: int) -> GaussianPrior:
    """A prior as the profiles fit it, of images that need no dataset."""
    images = noise_images(max(2 * rank, 20 * clusters), side)
    return GaussianPrior.fit(images, rank=rank, form="coloured", clusters=clusters)


def noise_images(n: int, side: int) -> Tensor:
    """(n, 3, side, side) whose power falls with the frequency, as that of photographs."""
    white = rng.randn((3, side, side), rng.generators(0, "benchmarks/noise-images", range(n)))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]).clamp(min=1 / side)
    x: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(side, side))
    return x / (2 * x.std())
