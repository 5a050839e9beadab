"""What every trained model promises: its recipe trains it, and says how it restores and what it is given."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from pydantic import TypeAdapter

from components.profiles import load_profile
from invfusion.diffusion.losses import Condition
from invfusion.errors import ConfigError
from invfusion.gaussian import GaussianPrior
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, denoiser_config
from invfusion.noise import GaussianNoise
from invfusion.rng import generator, generators, randn
from invfusion.samplers import AnySampler, Sampler
from invfusion.training.recipes import RECIPES, Distillation, Recipe
from invfusion.training.recipes.invfusion import InvFusion
from invfusion.training.task import draw_measurement

SHAPE = (3, 8, 8)
TINY = DenoiserConfig(
    image_size=8, patch_size=2, levels=(LevelConfig(width=24, depth=1),), head_dim=8, mapping_width=16,
    mapping_hidden=16, mapping_depth=1,
)  # fmt: skip
PRIOR = GaussianPrior.fit(0.5 * randn(SHAPE, generators(0, "prior", range(9))))
SAMPLER: TypeAdapter[Sampler] = TypeAdapter(AnySampler)

each = pytest.mark.parametrize("name", RECIPES)


def fresh(name: str) -> Denoiser:
    """The network of a recipe before training; a distilled one starts from a fresh model of the kind that it needs."""
    recipe = RECIPES[name]()
    if isinstance(recipe, Distillation):
        assert recipe.starts_from is not None
        return recipe.network_from(fresh(recipe.starts_from), 0)
    config = denoiser_config(TINY, **recipe.architecture)
    return recipe.network(config, 0, PRIOR if config.preconditioning == "gaussian" else None)


def images() -> torch.Tensor:
    return randn(SHAPE, generators(0, "x", range(2))).clip(-1, 1)


@each
def test_it_says_who_it_is(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.label
    assert recipe.given
    assert len({other.label for other in RECIPES.values()}) == len(RECIPES)


@each
def test_it_starts_from_a_model_that_serves(name: str) -> None:
    recipe = RECIPES[name]
    if recipe.starts_from is not None:
        assert issubclass(recipe, Distillation)
        assert recipe.can_start_from(RECIPES[recipe.starts_from])
        assert not any(recipe.can_start_from(other) for other in RECIPES.values() if not other.is_diffusion)


@each
def test_its_loss_trains_its_network(name: str) -> None:
    task, network, x = load_profile().task(name), fresh(name), images()
    condition = Condition(draw_measurement(task, x, 0))
    output = task.loss(network, x, condition, generator(0, "loss"))
    assert output.per_sample.shape == (2,)
    torch.autograd.backward(output.per_sample.mean())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@each
def test_its_sampler_restores(name: str) -> None:
    recipe, task, x = RECIPES[name](), load_profile().task(name), images()
    sampler = SAMPLER.validate_python(recipe.reads_out)
    draws = generators(0, "noise", range(2))
    with torch.inference_mode():
        measurement = draw_measurement(task, x, 0)
        restored = sampler.sample(fresh(name).eval(), measurement, randn(SHAPE, draws), generators=draws).x
    assert restored.shape == x.shape
    assert restored.isfinite().all()


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if issubclass(recipe, Distillation)])
def test_a_student_of_another_number_of_levels_is_refused(name: str) -> None:
    recipe: Any = RECIPES[name].model_validate({"student": {"widths": [24, 24], "depths": [1, 1]}})
    with pytest.raises(ConfigError, match=rf"recipes\.{name}: a student needs 1 widths and 1 depths"):
        recipe.network_from(fresh(recipe.starts_from), 0)


def test_a_variation_is_another_architecture_under_a_name_of_its_own() -> None:
    class Wider(InvFusion):
        name: ClassVar[str] = "wider"
        architecture: ClassVar[Mapping[str, Any]] = {**InvFusion.architecture, "feed_forward_factor": 5}

    recipe: Recipe = Wider()
    assert recipe.network(denoiser_config(TINY, **recipe.architecture), 0).config.feed_forward_factor == 5


def test_an_unknown_one_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown trained model 'nppcc': did you mean 'nppc'"):
        RECIPES["nppcc"]


def test_noise_belongs_to_measurements_alone() -> None:
    params = load_profile().model_copy(update={"noise": GaussianNoise(sigma_y=(0.1, 0.1))})
    assert draw_measurement(params.task("unconditional"), images(), 0) is None
    measurement = draw_measurement(params.task("palette"), images(), 0)
    assert measurement is not None


@each
def test_a_recipe_says_whether_it_is_trained_on_measurements(name: str) -> None:
    assert RECIPES[name].sees_measurements == (load_profile().task(name).degradation is not None)
