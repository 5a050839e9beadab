"""Validate a profile without data: build its models, and run one training step's arithmetic on each degradation.

`python -m components.training.dry_run --profile ffhq64` says what would be trained, and fails within seconds where it
could not.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from components.params import Params, load_params
from components.training.train import denoiser_for
from invfusion.degradations import DegradationFamily, Mixture
from invfusion.diffusion.losses import Condition
from invfusion.errors import InvFusionError
from invfusion.measuring import Streams, measure_batch
from invfusion.models import Denoiser
from invfusion.rng import generator, generators, randn

log = logging.getLogger(__name__)


def profile_path(name: str) -> Path:
    """The params file of a named profile; `params.yaml` itself where no name is given."""
    return Path("profiles") / f"{name}.yaml" if name else Path("params.yaml")


def dry_run(params: Params, batch_size: int = 1) -> None:
    """Build every variant on the fly and run the largest one forward and backward, one batch for each family.

    Raises:
        InvFusionError: the model, the operators or the loss do not fit together.
    """
    shape = (params.data.channels, params.data.image_size, params.data.image_size)
    for variant in params.train.variants:
        with torch.device("meta"):
            model = denoiser_for(params, variant)
        log.info("%-13s %11s parameters", variant, f"{sum(p.numel() for p in model.parameters()):,}")
    denoiser = denoiser_for(params, "invfusion")
    x = randn(shape, generators(params.seed, "dry-run/x", range(batch_size))).clip(-1, 1)
    for family in families(params.degradation):
        _one_step(params, denoiser, x, family)


def families(degradation: DegradationFamily) -> Sequence[DegradationFamily]:
    """The members of a mixture, or the family itself."""
    return degradation.members if isinstance(degradation, Mixture) else [degradation]


def _one_step(params: Params, denoiser: Denoiser, x: Tensor, family: DegradationFamily) -> None:
    start = time.perf_counter()
    streams = Streams("dry-run/operator", "dry-run/noise")
    measurement = measure_batch(x, family, params.noise, 0, params.seed, streams)
    output = params.train.loss(denoiser, x, Condition(measurement), generator(params.seed, "dry-run/loss"))
    loss = output.per_sample.mean()
    torch.autograd.backward(loss)
    log.info(
        "one batch of %d: operator '%s', measurement %s, loss %.4g, %.1f s",
        len(x), measurement.operator.kind, tuple(measurement.y.shape), loss.item(), time.perf_counter() - start,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="", help="a name under profiles/; default: params.yaml")
    parser.add_argument("--batch-size", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        path = profile_path(arguments.profile)
        params = load_params(path)
        log.info("%s is valid: %d training images at %d px", path, params.train.images, params.data.image_size)
        dry_run(params, arguments.batch_size)
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
