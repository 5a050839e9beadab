"""Distill a trained diffusion model into a one-step estimator: the posterior mean, or mean and principal components."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Literal

from components.train import MODELS, launch, run
from invfusion.config import Params, load_params
from invfusion.degradations import DegradationFamily, MixtureConfig
from invfusion.diffusion.losses import MMSELoss
from invfusion.errors import InvFusionError
from invfusion.models import Denoiser, build_denoiser, load_denoiser
from invfusion.models.denoiser import with_components
from invfusion.training.config import DistillTarget
from invfusion.training.loop import Task

log = logging.getLogger(__name__)
Target = Literal["mmse", "nppc"]


def distill(params: Params, target: Target) -> Path:
    """Train one distilled model; returns artifacts/models/<target>. The teacher is artifacts/models/<distill.teacher>.

    Raises:
        CheckpointError: the teacher has not been trained.
        InvFusionError: as in training.
    """
    if params.runtime.processes > 1 and "WORLD_SIZE" not in os.environ:
        launch(params.runtime.processes, "components.distill", ["--target", target])
        return MODELS / target
    return run(params, target, task_of(params, target), starting_point(params, target))


def task_of(params: Params, target: Target) -> Task:
    """What the distilled model is trained on: the teacher's settings with the target's own loss and length."""
    settings = getattr(params.distill, target)
    is_nppc = target == "nppc"
    degradation: DegradationFamily | MixtureConfig = params.distill.nppc.degradation if is_nppc else params.degradation
    config = params.train.model_copy(
        update={"images": settings.images, "lr": settings.lr, "warmup_images": min(params.train.warmup_images, settings.images // 10)}
    )
    loss = params.distill.nppc.loss if is_nppc else MMSELoss()
    return Task(loss, degradation, params.sigma_y, config, params.seed, fingerprint="")


def starting_point(params: Params, target: Target) -> Denoiser:
    """The teacher itself (with room for the components), or a smaller student with fresh weights."""
    settings: DistillTarget = getattr(params.distill, target)
    n_components = params.distill.nppc.n_components if target == "nppc" else 0
    teacher = load_denoiser(MODELS / params.distill.teacher)
    if settings.student is None:
        return with_components(teacher, n_components, params.seed) if n_components else teacher
    sizes = zip(teacher.config.levels, settings.student.widths, settings.student.depths, strict=True)
    levels = tuple(level.model_copy(update={"width": w, "depth": d}) for level, w, d in sizes)
    return build_denoiser(teacher.config, levels=levels, n_components=n_components, seed=params.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, choices=["mmse", "nppc"])
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        distill(load_params(arguments.params), arguments.target)
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
