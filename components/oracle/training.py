"""Train small models on draws of a known prior, of which there is no end.

No registry is imported: what is trained here depends on its own recipe's code, and on no other's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from components.code import code_of
from components.oracle.records import STATE, Head, identity
from components.params import OracleTrainingConfig, Params
from components.training.identity import settings
from invfusion import codec
from invfusion.data import Batch
from invfusion.degradations import DegradationFamily, Mixture
from invfusion.gaussian import GaussianPrior
from invfusion.gaussian.clusters import Clusters
from invfusion.gaussian.prior import FLOOR
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig
from invfusion.noise import GaussianNoise
from invfusion.oracle import GaussianMixture, gaussian_prior
from invfusion.rng import generators
from invfusion.training.distributed import Processes
from invfusion.training.loop import train
from invfusion.training.recipes.base import Recipe
from invfusion.training.task import Loss, Task

NO_LABEL = -1
# The recipe whose preconditioning is a Gaussian prior: here, one with the moments of the truth and clusters of draws.
GAUSSIAN = "invfusion_g"
# Clusters are looked for in so many principal coordinates at most: all, at 8x8.
CLUSTER_RANK = 64


@dataclass(frozen=True)
class Bench:
    """A model to train on the prior, with the settings. model: the name of its recipe."""

    params: Params
    name: str
    prior: GaussianMixture
    model: str
    width: int

    @property
    def chosen(self) -> OracleTrainingConfig:
        return self.params.oracle.training

    @property
    def sigma_y(self) -> float:
        """The noise level of the tests, the middle of the training's."""
        return sum(self.chosen.sigma_y) / 2

    def with_training(self, **settings: Any) -> "Bench":
        """The same with other settings of `oracle.training`."""
        oracle = self.params.oracle.model_copy(update={"training": self.chosen.model_copy(update=settings)})
        return replace(self, params=self.params.model_copy(update={"oracle": oracle}))

    @property
    def label(self) -> str:
        """What its records are called."""
        return "InvFusion-G" if self.model == GAUSSIAN else self.model

    @property
    def boxes(self) -> DegradationFamily:
        """What NPPC is trained on."""
        family = self.params.task("nppc").degradation
        assert family is not None
        return family

    @property
    def recipe(self) -> Recipe:
        return self.params.recipe(self.model)

    @property
    def families(self) -> Mixture:
        """What it is trained on: all families in equal parts, and to generate."""
        members = [family.model_dump() for family in self.params.oracle.families]
        return Mixture.model_validate({"members": [*members, {"kind": "null"}]})

    def task(self, images: int) -> Task:
        """What it learns in so many images."""
        config = self.chosen.model_copy(update={"images": images})
        usual = Task(config.loss, self.families, GaussianNoise(sigma_y=config.sigma_y), config, self.params.seed)
        return self.recipe.task(usual)

    @property
    def facts(self) -> dict[str, Any]:
        """What its training depends on."""
        chosen = self.params.oracle
        return {
            "prior": chosen.priors[0].model_dump(),
            "weights": self.prior.log_weights.tolist(),
            "families": [family.model_dump(mode="json") for family in chosen.families],
            "training": chosen.training.model_dump(mode="json"),
            "nppc": self.boxes.model_dump(mode="json"),
            "recipe": self.recipe.settings,
            "task": settings(self.task(self.chosen.images)),
            "seed": self.params.seed,
            "model": self.model,
            "width": self.width,
        }

    @property
    def code(self) -> set[str]:
        """The code that its training depends on."""
        task = self.task(self.chosen.images)
        return {__name__} | code_of(self.recipe, task.loss, task.degradation, self.boxes)

    def head(self, method: str, degradation: str, nfe: int) -> Head:
        """What the records of a model begin with."""
        return {
            "judgement": "model",
            "prior": self.name,
            "degradation": degradation,
            "sigma_y": self.sigma_y,
            "n": self.chosen.n_test,
            "method": method,
            "settings": {"width": self.width},
            "nfe": nfe,
        }


def build(bench: Bench) -> Denoiser:
    """A denoiser of one level with patches of 2 x 2 pixels."""
    channels, *sides = bench.prior.image_shape
    config = DenoiserConfig(
        **bench.recipe.architecture,
        image_size=(sides[0], sides[1]),
        channels=channels,
        patch_size=2,
        levels=(LevelConfig(width=bench.width, depth=bench.chosen.depth),),
        head_dim=24,
        mapping_width=64,
        mapping_hidden=128,
        dropout=0.0,
    )
    return Denoiser(config, bench.params.seed, fitted_prior(bench) if bench.model == GAUSSIAN else None)


def fitted_prior(bench: Bench) -> GaussianPrior:
    """The Gaussian with the moments of the truth; its clusters, each with a covariance of its own, are found among the
    first draws that training sees."""
    gaussian, chosen = gaussian_prior(bench.prior), bench.chosen
    if chosen.clusters > 1:
        x = bench.prior.sample(generators(bench.params.seed, "oracle/train", range(chosen.cluster_images)))
        rank = min(len(x) - 1, gaussian.mean.numel(), CLUSTER_RANK)
        gaussian.clusters = Clusters.fit_each(x, chosen.clusters, rank, FLOOR)
    return gaussian


@dataclass(frozen=True)
class PriorDraws:
    """Draws of the prior in the form of training batches, unquantised; each is seen once."""

    prior: GaussianMixture
    seed: int
    micro_batch_size: int
    highest_label: int = NO_LABEL

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.prior.image_shape)

    def iterate(self, start: int, end: int, step: int = 1, offset: int = 0) -> Iterator[Batch]:
        """As `TrainingStream.iterate`."""
        size = self.micro_batch_size
        for first in range(start + offset * size, end, step * size):
            rows = range(first, first + size)
            x = self.prior.sample(generators(self.seed, "oracle/train", rows))
            yield Batch(codec.to_pixel_scale(x.float()), [f"draw-{i}" for i in rows], torch.full((size,), NO_LABEL))


def trained(bench: Bench, name: str, task: Task, build: Callable[[], Denoiser]) -> Denoiser:
    """The averaged model after the task's images; its training state is kept, and continued by longer tasks."""
    folder = STATE / "training" / f"{name}-{identity(bench.facts, bench.code)}"
    stream = PriorDraws(bench.prior, task.seed, task.config.micro_batch_size)
    model = train(task, build(), stream, folder, device=torch.device("cpu"), processes=Processes())
    assert model is not None, "nothing asks it to stop"
    return model


def diffusion_model(bench: Bench, images: int) -> Denoiser:
    """The bench's model after so many images."""
    return trained(bench, bench.model, bench.task(images), partial(build, bench))


def distilled(
    bench: Bench, name: str, loss: Loss, degradation: DegradationFamily, start: Callable[[Denoiser], Denoiser]
) -> Denoiser:
    """A one-step estimator that starts from the trained model."""
    config = bench.chosen.model_copy(update={"images": bench.chosen.distill_images})
    task = Task(loss, degradation, GaussianNoise(sigma_y=config.sigma_y), config, bench.params.seed + 1)
    teacher = partial(diffusion_model, bench, bench.chosen.total_images)
    return trained(bench, name, task, lambda: start(teacher()).requires_grad_(True))
