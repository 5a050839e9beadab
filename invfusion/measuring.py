"""From images to measurements: an operator of a family, and noise, from generators of their own.

In evaluation each image is measured with a key of its own, so that its measurement does not depend on its neighbours;
in training a micro-batch shares one key, and with it what shapes tensors, such as the stride.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from invfusion.degradations import DegradationFamily
from invfusion.errors import ShapeError
from invfusion.noise import GaussianNoise, Noise
from invfusion.operators.base import LinearOperator, Measurement
from invfusion.rng import generator

NOISELESS = GaussianNoise()


@dataclass(frozen=True)
class Streams:
    """The names of the random streams of operators and of noise; see `invfusion.rng`."""

    operator: str = "measure/operator"
    noise: str = "measure/noise"


DEFAULT = Streams()


def measure(
    x: Tensor,
    family: DegradationFamily,
    noise: Noise = NOISELESS,
    keys: Sequence[int | str] | None = None,
    seed: int = 0,
    streams: Streams = DEFAULT,
) -> Measurement:
    """Measure images x (B, C, H, W) in [-1, 1], each as its own key says; keys: B of them, by default 0, 1, 2, ...

    Raises:
        ShapeError: the images drew operators that no batch can hold, such as of different strides.
    """
    keys = range(len(x)) if keys is None else keys
    if len(keys) != len(x):
        raise ShapeError(f"{len(x)} images need as many keys, got {len(keys)}")
    parts = [measure_batch(x[i : i + 1], family, noise, key, seed, streams) for i, key in enumerate(keys)]
    try:
        return Measurement.cat(parts)
    except ShapeError as error:
        raise ShapeError(f"{error}: measure the images one by one, or all with one key by `measure_batch`") from None


def measure_batch(
    x: Tensor, family: DegradationFamily, noise: Noise, key: int | str, seed: int, streams: Streams = DEFAULT
) -> Measurement:
    """The measurement of images x (B, C, H, W) that share one key: one draw of B operators, on the images' device."""
    operator = draw_operator(family, len(x), x.shape[1:], key, seed, streams)
    return observe(x, operator.to(x.device), noise, key, seed, streams)


def draw_operator(
    family: DegradationFamily,
    batch_size: int,
    image_shape: Sequence[int],
    key: int | str,
    seed: int,
    streams: Streams = DEFAULT,
) -> LinearOperator:
    """The CPU operators of the images of one key, for images of shape (C, H, W)."""
    draws = generator(seed, streams.operator, key)
    return family.sample(batch_size=batch_size, image_shape=tuple(image_shape), generator=draws)


def observe(
    x: Tensor, operator: LinearOperator, noise: Noise, key: int | str, seed: int, streams: Streams = DEFAULT
) -> Measurement:
    """What an operator on the images' device sees of x (B, C, H, W), with the noise of one key."""
    return noise.measure(x, operator, generator(seed, streams.noise, key))
