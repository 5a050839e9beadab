"""Distillation: from the trained diffusion model to one-step estimators."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import ARCHITECTURE, RecordingRun, make_params, read_json, workplace

from components.params import Params
from components.profiles import load_profile
from components.training.train import LOGS, MODELS, network, train
from invfusion.degradations.boxes import BoxInpainting
from invfusion.diffusion.losses import MMSELoss, NPPCLoss
from invfusion.errors import CheckpointError, ConfigError
from invfusion.models import build_denoiser, load_denoiser, save_denoiser
from invfusion.rng import generator
from invfusion.training.recipes import StudentConfig


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[RecordingRun]]:
    """A workplace with a teacher whose weights are off zero."""
    with workplace(tmp_path) as runs:
        teacher = build_denoiser(ARCHITECTURE)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator(0, "shake"))
        save_denoiser(teacher, MODELS / "invfusion", {})
        save_denoiser(build_denoiser(ARCHITECTURE, "unconditional"), MODELS / "unconditional", {})
        yield runs


def with_target(target: str, **changes: Any) -> Params:
    params = make_params()
    recipe = params.recipe(target).model_copy(update=changes)
    return params.model_copy(update={"recipes": params.recipes.model_copy(update={target: recipe})})


@pytest.mark.parametrize(("target", "n_components"), [("mmse", 0), ("nppc", 3)])
def test_it_publishes_a_model(runs: list[RecordingRun], target: Any, n_components: int) -> None:
    assert train(make_params(), target) == MODELS / target
    model = load_denoiser(MODELS / target)
    assert (model.config.variant, model.config.n_components) == ("invfusion", n_components)
    assert read_json(MODELS / target / "manifest.json")["nimg"] == 16
    assert (LOGS / f"{target}.csv").read_text().count("\n") == 2
    assert len(runs[0].images) == 1, "a grid of restorations at the end"


@pytest.mark.parametrize("target", ["mmse", "nppc"])
def test_it_starts_where_the_teacher_ended(runs: list[RecordingRun], target: Any) -> None:
    teacher, start = load_denoiser(MODELS / "invfusion"), network(make_params(), target).eval()
    x = torch.randn((2, 3, 8, 8), generator=generator(0, "x"))
    sigma = torch.tensor([1.0, 100.0])
    torch.testing.assert_close(start(x, sigma), teacher(x, sigma))


def test_the_components_start_off_zero(runs: list[RecordingRun]) -> None:
    start = network(make_params(), "nppc")
    _, directions = start.components(
        100 * torch.randn((2, 3, 8, 8), generator=generator(0, "x")), torch.full((2,), 100.0)
    )
    assert directions.flatten(2).norm(dim=2).min() > 1e-3


def test_unrolled_ddrm_goes_on_from_the_unconditional_model(runs: list[RecordingRun]) -> None:
    params = with_target("unrolled_ddrm", images=16, n_steps=3)
    assert train(params, "unrolled_ddrm") == MODELS / "unrolled_ddrm"
    assert load_denoiser(MODELS / "unrolled_ddrm").config.variant == "unconditional"
    facts = read_json(MODELS / "unrolled_ddrm" / "manifest.json")
    assert (facts["loss"]["kind"], facts["loss"]["sampler"]["n_steps"]) == ("unrolled_ddrm", 3)
    assert facts["degradation"] is not None
    assert len(runs[0].images) == 1, "a grid of restorations at the end"


def test_a_smaller_student(runs: list[RecordingRun]) -> None:
    student = StudentConfig(widths=[24, 24], depths=[1, 1])
    train(with_target("mmse", student=student), "mmse")
    model, teacher = load_denoiser(MODELS / "mmse"), load_denoiser(MODELS / "invfusion")
    assert [level.width for level in model.config.levels] == [24, 24]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in teacher.parameters())


def test_a_student_of_another_number_of_levels_is_refused(runs: list[RecordingRun]) -> None:
    with pytest.raises(ConfigError, match="2 widths and 2 depths"):
        network(with_target("mmse", student=StudentConfig(widths=[24], depths=[1])), "mmse")


def test_without_a_teacher(tmp_path: Path) -> None:
    with workplace(tmp_path), pytest.raises(CheckpointError, match=r"invfusion: no such checkpoint folder"):
        train(make_params(), "mmse")


def test_each_target_has_its_own_task() -> None:
    params = make_params()
    mmse, nppc = params.task("mmse"), params.task("nppc")
    assert isinstance(mmse.loss, MMSELoss)
    assert mmse.degradation == params.degradation
    assert isinstance(nppc.loss, NPPCLoss)
    assert nppc.degradation == BoxInpainting()
    assert mmse.config.batch_size == params.train.batch_size
    assert mmse.config.lr == load_profile().recipes.mmse.lr
