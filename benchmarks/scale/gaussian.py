"""Cost of the Gaussian prior: fitted, conditioned on a measurement, asked for an estimate at a noise level."""

from collections.abc import Iterator, Sequence

import torch

from benchmarks.scale.curves import Clock, Curve
from benchmarks.setting import noise_images
from invfusion import rng
from invfusion.degradations import FAMILIES
from invfusion.gaussian import GaussianPrior
from invfusion.gaussian.prior import Form
from invfusion.operators import Measurement

SIZES = (16, 32, 64, 128, 256, 512)
RANKS = (8, 16, 32, 64, 128, 256, 512)
# Images that a prior is fitted to, and the measurements that it is conditioned on.
N_IMAGES, N_MEASURED = 64, 4
RANK, SIDE = 32, 32
SIGMA, SIGMA_Y = 0.5, 0.1


def sizes(sides: Sequence[int]) -> Iterator[Curve]:
    """The stationary form, which has no rank, and one rank at growing images."""
    yield Curve(
        "Gaussian, stationary, blur", "side", sides, 2, lambda n, clock: used(n, None, "stationary", N_IMAGES, clock)
    )
    yield Curve(
        f"Gaussian, rank {RANK}, blur", "side", sides, 2, lambda n, clock: used(n, RANK, "full", N_IMAGES, clock)
    )


def ranks(found: Sequence[int]) -> Iterator[Curve]:
    """As many images as the largest rank needs, whatever the rank."""
    n_images = max(found) + 1
    for form in ("full", "coloured"):
        yield Curve(
            f"Gaussian, {form}, blur", "rank", found, 3,
            lambda n, clock, form=form: used(SIDE, n, form, n_images, clock),  # type: ignore[misc]
        )  # fmt: skip


def used(side: int, rank: int | None, form: Form, n_images: int, clock: Clock) -> None:
    """Fit a prior to images of noise, and use it."""
    x, family = noise_images(n_images, side), FAMILIES["strided_motion_blur"]()
    with clock("fitting"):
        prior = GaussianPrior.fit(x, rank=rank, form=form)
    operator = family.sample(N_MEASURED, (3, side, side), rng.generator(0, "benchmarks/scale/blur"))
    measurement = Measurement.of(
        x[:N_MEASURED], operator, SIGMA_Y, rng.randn(operator.measurement_shape, draws("noise", N_MEASURED))
    )
    posterior = prior.law_of((N_MEASURED, 3, side, side), measurement)
    with clock("conditioning"):
        _ = posterior.mean
    with clock("denoising"):
        posterior.denoise(x[:N_MEASURED], torch.tensor(SIGMA))


def draws(purpose: str, n: int) -> list[torch.Generator]:
    return rng.generators(0, f"benchmarks/scale/{purpose}", range(n))
