"""Validate a profile without data: build its models, run one training step's arithmetic on each degradation, and
account for time, memory and disk of every stage.

`python -m components.training.dry_run --profile ffhq64` says what would be trained, what each stage takes on this
machine and what does not fit; with `--gpu a40`, on one GPU of that kind. With `--tables` it says in a line what each
table and figure takes, with all of its trainings: what two of them share is trained and restored once.
"""

import logging
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from components import account, cli
from components.account import Line, Machine
from components.params import Params, load_params
from components.paths import STAGED
from components.profiles import load_profile
from components.reporting.experiments import experiment_names, load_experiment
from components.training.train import network
from invfusion.data.manifest import MANIFEST
from invfusion.data.staged import StagedManifest
from invfusion.degradations import DegradationFamily, members_of
from invfusion.diffusion.losses import Condition
from invfusion.errors import ConfigError
from invfusion.gaussian import GaussianPrior
from invfusion.measuring import Streams, measure_batch
from invfusion.models import Denoiser
from invfusion.models.flops import forward_flops
from invfusion.rng import generator, generators, randn
from invfusion.training.task import Task

log = logging.getLogger(__name__)

# Images that a stand-in for the Gaussian prior is fitted to.
STAND_IN = 17


def dry_run(params: Params, batch_size: int = 1, gpu: str = "", tables: bool = False) -> list[Line]:
    """Build every model, run the largest that is given measurements forward and backward on each family, and log what
    all stages take, or `tables`: on this machine, or on one GPU of a kind. Returns the account of the stages.

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
        return []
    largest = max(measured, key=lambda name: sizes[name])
    denoiser, task = network(params, largest, prior=stand_in), measured[largest]
    x = randn(shape, generators(params.seed, "dry-run/x", range(batch_size))).clip(-1, 1)
    assert task.degradation is not None
    steps = [_one_step(task, denoiser, x, family) for family in members_of(task.degradation)]
    speed = account.BACKWARD * forward_flops(denoiser.config) * batch_size / min(steps)
    machine = Machine.named(gpu) if gpu else Machine.this(speed, x.device)
    lines = account.account(params, sizes)
    if tables:
        log.info("staging is not in it")
    elif not any(line.what == account.IMAGES for line in lines):
        log.info("what staging the images takes is not in it: no dataset can be read in %s", params.data.shards)
    if not (weights := account.inception(params)).is_file():
        log.info(
            "FID, CFID and KID, which can take hours, are not in it: there is no %s, so stand-ins are shown", weights
        )
    for row in of_tables(params, machine, stand_in) if tables else account.table(lines, machine):
        log.info(row)
    return lines


def of_tables(params: Params, machine: Machine, prior: GaussianPrior) -> Iterator[str]:
    """What each table and figure takes, in a line; or why it cannot be made."""

    def count(changed: Params, name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in network(changed, changed.first_of(name), prior=prior).parameters())

    yield f"on {machine.name}; Gaussian: {account.GAUSSIAN_SHARE}"
    n_classes = _staged_classes(params)
    for name in experiment_names():
        experiment = load_experiment(name)
        try:
            changed = experiment.applied(params, params.model.n_classes if n_classes is None else n_classes)
        except ConfigError as error:
            unknown = experiment.class_conditional and n_classes is None
            yield f"{name}: {error}" + (f" ('{params.data.name}' is not staged, which would say)" if unknown else "")
        else:
            lines = account.of_experiment(experiment, changed, count)
            yield f"{name}: {account.summary(lines, machine)}"


def _staged_classes(params: Params) -> int | None:
    """Of the profile's data, where they are staged: without them a profile does not say whether they have classes."""
    try:
        staged = StagedManifest.model_validate_json((STAGED / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    own = (params.data.name, params.data.image_size, params.data.channels)
    return len(staged.class_names) if (staged.name, staged.image_size, staged.channels) == own else None


def _one_step(task: Task, denoiser: Denoiser, x: Tensor, family: DegradationFamily) -> float:
    """One step's seconds, drawing aside."""
    streams = Streams("dry-run/operator", "dry-run/noise")
    measurement = measure_batch(x, family, task.noise, 0, task.seed, streams)
    start = time.perf_counter()
    output = task.loss(denoiser, x, Condition(measurement), generator(task.seed, "dry-run/loss"))
    loss = output.per_sample.mean()
    torch.autograd.backward(loss)
    seconds = time.perf_counter() - start
    log.info(
        "one batch of %d: operator '%s', measurement %s, loss %.4g, %.1f s",
        len(x), measurement.operator.kind, tuple(measurement.y.shape), loss.item(), seconds,
    )  # fmt: skip
    return seconds


def main() -> None:
    command = cli.parser(__doc__, params=False)
    command.add_argument("--profile", default="", help="a name under profiles/; default: params.yaml")
    command.add_argument("--batch-size", type=int, default=1)
    command.add_argument("--tables", action="store_true", help="account for each table and figure instead")
    command.add_argument("--gpu", default="", choices=["", *account.GPUS], help="account for one GPU of this kind")
    with cli.started(command) as options:
        params = load_profile(options.profile) if options.profile else load_params()
        name = options.profile or "params.yaml"
        log.info("%s is valid: %d training images at %d px", name, params.train.images, params.data.image_size)
        dry_run(params, options.batch_size, options.gpu, options.tables)


if __name__ == "__main__":
    main()
