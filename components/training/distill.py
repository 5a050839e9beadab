"""Distill a trained diffusion model: to the posterior mean, to mean and principal components, or to unrolled DDRM."""

from pathlib import Path
from typing import get_args

from components.params import Params
from components.training.train import MODELS, command_line, launch, must_launch, run
from invfusion.diffusion.losses import MMSELoss
from invfusion.errors import ConfigError
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, build_denoiser, load_denoiser, with_components
from invfusion.samplers.ddrm import UnrolledDDRM
from invfusion.training.config import DistilledTarget, DistillTarget, StudentConfig
from invfusion.training.task import Task
from invfusion.training.unrolled import UnrolledDDRMLoss


def distill(params: Params, target: DistilledTarget) -> Path:
    """Train one distilled model; returns artifacts/models/<target>. It starts from <distill.teacher>,
    unrolled DDRM from <distill.unrolled_ddrm.start>, under the same folder.

    Raises:
        CheckpointError: the model to start from has not been trained.
        InvFusionError, SystemExit: as in training.
    """
    if must_launch(params):
        launch(params, target, "components.training.distill", ["--target", target])
        return MODELS / target
    return run(params, target, task_of(params, target), starting_point(params, target))


def task_of(params: Params, target: DistilledTarget) -> Task:
    """What the distilled model is trained on: the teacher's settings with the target's own loss and length."""
    settings = _settings(params, target)
    config = params.train.model_copy(
        update={"images": settings.images, "lr": settings.lr, "warmup_images": settings.warmup_images}
    )
    if target == "nppc":
        nppc = params.distill.nppc
        return Task(nppc.loss, nppc.degradation, params.noise, config, params.seed)
    if target == "unrolled_ddrm":
        unrolled = params.distill.unrolled_ddrm
        loss = UnrolledDDRMLoss(sampler=UnrolledDDRM(n_steps=unrolled.n_steps, eta=unrolled.eta))
        return Task(loss, params.degradation, params.noise, config, params.seed)
    return Task(MMSELoss(), params.degradation, params.noise, config, params.seed)


def starting_point(params: Params, target: DistilledTarget, teacher_folder: Path | None = None) -> Denoiser:
    """The teacher itself (with room for the components), or a smaller student with fresh weights.

    teacher_folder: that of the pipeline where none is given.
    """
    n_components = params.distill.nppc.n_components if target == "nppc" else 0
    teacher = load_denoiser(teacher_folder or MODELS / params.distill.model_before(target))
    student = _settings(params, target).student
    if student is not None:
        levels = student_levels(student, teacher.config)
        return build_denoiser(teacher.config, levels=levels, n_components=n_components, seed=params.seed)
    return with_components(teacher, n_components, params.seed) if n_components else teacher


def student_levels(student: StudentConfig, teacher: DenoiserConfig) -> tuple[LevelConfig, ...]:
    """The teacher's levels with the student's widths and depths. Raises `ConfigError` where their numbers differ."""
    n = len(teacher.levels)
    if not len(student.widths) == len(student.depths) == n:
        raise ConfigError(f"distill: a student needs {n} widths and {n} depths, one for each level of its teacher")
    sizes = zip(teacher.levels, student.widths, student.depths, strict=True)
    return tuple(level.model_copy(update={"width": w, "depth": d}) for level, w, d in sizes)


def _settings(params: Params, target: DistilledTarget) -> DistillTarget:
    settings: DistillTarget = getattr(params.distill, target)
    return settings


if __name__ == "__main__":
    command_line(__doc__, "target", get_args(DistilledTarget), distill)
