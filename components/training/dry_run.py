"""Validate a profile without data: build its models, and run one training step's arithmetic on each degradation.

`python -m components.training.dry_run --profile ffhq64` says what would be trained, and fails within seconds where it
could not.
"""

import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from components import cli
from components.params import Params, load_params
from components.profiles import load_profile
from components.training.train import network
from invfusion.degradations import DegradationFamily, Mixture
from invfusion.diffusion.losses import Condition
from invfusion.gaussian import GaussianPrior
from invfusion.measuring import Streams, measure_batch
from invfusion.models import Denoiser
from invfusion.rng import generator, generators, randn
from invfusion.training.task import Task

log = logging.getLogger(__name__)

# Images that a stand-in for the Gaussian prior is fitted to.
STAND_IN = 17


def dry_run(params: Params, batch_size: int = 1) -> None:
    """Build every model, and run the largest that is given measurements forward and backward on each family.

    Raises:
        InvFusionError: the model, the operators or the loss do not fit together.
    """
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    # The images' own is fitted at staging.
    stand_in = GaussianPrior.fit(randn(shape, generators(params.seed, "dry-run/prior", range(STAND_IN))))
    sizes: dict[str, int] = {}
    for name in params.train.models:
        with torch.device("meta"):
            model = network(params, name, prior=stand_in)
        sizes[name] = sum(p.numel() for p in model.parameters())
        log.info("%-13s %11s parameters", name, f"{sizes[name]:,}")
    measured = {name: task for name in sizes if (task := params.task(name)).degradation is not None}
    if not measured:
        return
    largest = max(measured, key=lambda name: sizes[name])
    denoiser, task = network(params, largest, prior=stand_in), measured[largest]
    x = randn(shape, generators(params.seed, "dry-run/x", range(batch_size))).clip(-1, 1)
    assert task.degradation is not None
    for family in families(task.degradation):
        _one_step(task, denoiser, x, family)


def families(degradation: DegradationFamily) -> Sequence[DegradationFamily]:
    """The members of a mixture, or the family itself."""
    return degradation.members if isinstance(degradation, Mixture) else [degradation]


def _one_step(task: Task, denoiser: Denoiser, x: Tensor, family: DegradationFamily) -> None:
    start = time.perf_counter()
    streams = Streams("dry-run/operator", "dry-run/noise")
    measurement = measure_batch(x, family, task.noise, 0, task.seed, streams)
    output = task.loss(denoiser, x, Condition(measurement), generator(task.seed, "dry-run/loss"))
    loss = output.per_sample.mean()
    torch.autograd.backward(loss)
    log.info(
        "one batch of %d: operator '%s', measurement %s, loss %.4g, %.1f s",
        len(x), measurement.operator.kind, tuple(measurement.y.shape), loss.item(), time.perf_counter() - start,
    )  # fmt: skip


def main() -> None:
    command = cli.parser(__doc__, params=False)
    command.add_argument("--profile", default="", help="a name under profiles/; default: params.yaml")
    command.add_argument("--batch-size", type=int, default=1)
    with cli.started(command) as options:
        params = load_profile(options.profile) if options.profile else load_params()
        name = options.profile or "params.yaml"
        log.info("%s is valid: %d training images at %d px", name, params.train.images, params.data.image_size)
        dry_run(params, options.batch_size)


if __name__ == "__main__":
    main()
