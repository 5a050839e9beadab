"""Cost against the side of an image, the images of a batch and the rows of a matrix."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.scale.curves import Clock, Curve
from benchmarks.setting import Setting
from invfusion import rng
from invfusion.degradations import FAMILIES, DegradationFamily
from invfusion.degradations.matrix import RandomMatrix
from invfusion.operators import Blur, Downsampling, Inpainting, LinearOperator, MaskOperator, Measurement
from invfusion.restoration.photos import load_photos
from invfusion.restoration.refinement import refined

SIZES = (16, 32, 64, 128, 256, 512, 1024)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
ROWS = (8, 16, 32, 64, 128, 256, 512, 1024)
# Pixels of the images of a growing batch, or a growing matrix.
SIDE = 32
# Rows of a matrix where the image grows: the mean of the family's.
MEAN_ROWS = 65


def operators(sizes: Sequence[int]) -> Iterator[Curve]:
    """One operator of each family: drawn, its inverse made, applied both ways to one colour image."""
    for kind in FAMILIES:
        family = RandomMatrix(min_rows=MEAN_ROWS, max_rows=MEAN_ROWS) if kind == "matrix" else FAMILIES[kind]()
        # Powers of the side, as for all pixels once.
        yield Curve(f"operator {kind}", "side", sizes, 2, lambda n, clock, f=family: mapped(f, 1, n, clock))  # type: ignore[misc]


def mapped(family: DegradationFamily, batch: int, side: int, clock: Clock) -> None:
    """Draw operators and use them."""
    shape = (3, side, side)
    x = images(batch, side)
    with clock("drawing"):
        operator = family.sample(batch, shape, rng.generator(0, "benchmarks/scale", side))
    with clock("inverse"):
        operator.prepare()
    with clock("H"):
        y = operator.H(x)
    with clock("H_pinv"):
        operator.H_pinv(y)


def images(batch: int, side: int) -> Tensor:
    """Smooth colour images (B, 3, side, side) in [-1, 1]."""
    coarse = rng.randn((3, 4, 4), rng.generators(0, "benchmarks/scale/images", range(batch)))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(-1, 1)


def restorations(sizes: Sequence[int]) -> Iterator[Curve]:
    """A picture through the shipped model of photographs: its Gaussian estimate, and the network that refines it."""
    bell = torch.outer(*[torch.exp(-(torch.arange(-5, 6) ** 2) / 5.12)] * 2)
    kinds: dict[str, tuple[Callable[[int], LinearOperator], float]] = {
        "noise": (lambda n: MaskOperator((3, n, n), torch.ones(1, 1, n, n)), 0.1),
        "half of the pixels": (lambda n: Inpainting((3, n, n), _half(n)), 0.0),
        "blur": (lambda n: Blur((3, n, n), (bell / bell.sum())[None, None], "valid"), 0.01),
        "reduction by 4": (lambda n: Downsampling((3, n, n), 4, "bicubic"), 0.01),
    }
    for name, (make, sigma_y) in kinds.items():
        run = lambda n, clock, make=make, s=sigma_y: restored(make(n), s, n, clock)  # noqa: E731 - binds its own case
        yield Curve(f"photograph: {name}", "side", sizes, 2, run)


def _half(side: int) -> Tensor:
    return (torch.rand(1, 1, side, side, generator=rng.generator(0, "benchmarks/scale/half")) < 0.5).float()


def restored(operator: LinearOperator, sigma_y: float, side: int, clock: Clock) -> None:
    """The estimate of one picture."""
    noise = rng.randn(operator.measurement_shape, rng.generators(0, "benchmarks/scale/noise", [0]))
    measurement = Measurement.of(images(1, side), operator, sigma_y, noise)
    with torch.no_grad():
        law = load_photos().law_of((1, 3, side, side), measurement)
        with clock("Gaussian estimate"):
            estimate = law.gaussian_mean
        with clock("network"):
            refined(estimate, measurement)


def stacks(batches: Sequence[int]) -> Iterator[Curve]:
    """Many images at once: operators, and a network's call."""
    for kind in ("strided_motion_blur", "patch_inpainting", "matrix"):
        family = FAMILIES[kind]()
        run = lambda n, clock, f=family: mapped(f, n, SIDE, clock)  # noqa: E731 - binds its own family
        yield Curve(f"operators {kind}", "images", batches, 1, run)
    setting = Setting("digits16", torch.device("cpu"))
    denoiser = setting.denoiser("invfusion").eval()

    def call(n: int, clock: Clock) -> None:
        x, measurement = setting.images(n), setting.measurement("strided_motion_blur", n)
        with torch.inference_mode(), clock("network"):
            denoiser(x, torch.ones(n), measurement)

    yield Curve("network call, default preset", "images", batches, 1, call)


def matrices(rows: Sequence[int]) -> Iterator[Curve]:
    """A random matrix with so many rows, of one colour image."""

    def run(n: int, clock: Clock) -> None:
        mapped(RandomMatrix(min_rows=n, max_rows=n), 1, SIDE, clock)

    # The Gram matrix.
    yield Curve("operator matrix", "rows", rows, 2, run)
