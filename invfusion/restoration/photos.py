"""`photos`: a Gaussian model of photographs of any size. There is no network in it: its estimates are linear in y.

What photographs have in common at every place is their mean colour, how their colours vary together and how much power
each spatial frequency carries. `photos.json` holds these few numbers, with what they were fitted to; `fit_photos.py`
beside this file makes it. For each image size they give a stationary Gaussian prior, whose posterior is exact.
"""

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import CheckpointError, ShapeError
from invfusion.gaussian import GaussianPosterior, GaussianPrior
from invfusion.gaussian.covariance import Stationary
from invfusion.operators import Measurement
from invfusion.samplers.base import Follows, SampleOutput, Sampler

PHOTOS_FILE = Path(__file__).with_name("photos.json")
# Of a prior's sizes, so many stay in memory.
KEPT_POSTERIORS = 2


class _OfPrior(Sampler):
    """A sampler that asks a Gaussian model itself: no network call."""

    uses_denoiser: ClassVar[bool] = False

    @staticmethod
    def _posterior(denoiser: DenoiserLike, measurement: Measurement | None, noise: Tensor) -> GaussianPosterior:
        assert isinstance(denoiser, Photos)
        return denoiser.posterior(tuple(noise.shape[1:]), measurement, len(noise))


class PhotosDraw(_OfPrior):
    """Exact draws of the Gaussian posterior."""

    follows: ClassVar[Follows] = "posterior"
    kind: Literal["photos_draw"] = "photos_draw"

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,  # noqa: ARG002
    ) -> SampleOutput:
        return SampleOutput(self._posterior(denoiser, measurement, noise).sample(generators), nfe=0)


class PhotosMean(_OfPrior):
    """The Gaussian posterior's mean, which is the best linear estimate: the Wiener filter of this operator."""

    follows: ClassVar[Follows] = "mean"
    kind: Literal["photos_mean"] = "photos_mean"

    def _sample(
        self,
        denoiser: DenoiserLike,
        measurement: Measurement | None,
        noise: Tensor,
        generators: Sequence[torch.Generator],  # noqa: ARG002
        class_labels: Tensor | None,  # noqa: ARG002
    ) -> SampleOutput:
        return SampleOutput(self._posterior(denoiser, measurement, noise).mean, nfe=0)


class Photos(nn.Module):
    """E[x | x_sigma, y] of the Gaussian model, for images (B, C, H, W) of any size with C = 1 (grey) or 3.

    description: the content of `photos.json`.
    """

    n_classes = 0
    is_conditional = True
    sees_whole_image = True
    samplers: ClassVar[dict[str, Sampler]] = {"sample": PhotosDraw(), "mmse": PhotosMean()}

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.description = description
        # Priors move to the device of what they are asked about.
        self._priors: dict[tuple[int, ...], GaussianPrior] = {}

    def prior(self, image_shape: Sequence[int]) -> GaussianPrior:
        """The prior of images (C, H, W). Raises `ShapeError` unless C is 1 or 3."""
        shape = tuple(image_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ShapeError(f"the model 'photos' knows images of 1 or 3 channels, got {shape}")
        if shape not in self._priors:
            self._priors.clear()
            self._priors[shape] = _prior(self.description, shape)
        return self._priors[shape]

    def posterior(
        self, image_shape: Sequence[int], measurement: Measurement | None, batch_size: int
    ) -> GaussianPosterior:
        """The law of `batch_size` images given their measurement, if there is one."""
        if measurement is None:
            return self.prior(image_shape).unconditional(batch_size)
        return self.prior(image_shape).to(measurement.y.device).posterior(measurement)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,  # noqa: ARG002 - photographs have no classes
    ) -> Tensor:
        """x (B, C, H, W) at noise levels sigma (B,) or () -> (B, C, H, W) float32."""
        return self.posterior(x.shape[1:], measurement, len(x)).denoise(x, sigma)


@cache
def load_photos() -> Photos:
    """The shipped model. Raises `CheckpointError` where its file is missing or damaged."""
    try:
        return Photos(json.loads(PHOTOS_FILE.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{PHOTOS_FILE}: cannot be read ({error}); install invfusion again") from error


def _prior(description: dict[str, Any], shape: tuple[int, ...]) -> GaussianPrior:
    channels, height, width = shape
    colours = np.array(description["colours"])
    mean = np.array(description["mean"])
    power = np.array(description["power"])
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    log_f = np.log(np.hypot(rows, columns).clip(min=0.5 / max(height, width)))
    spectrum = np.exp([_extended(log_f, np.log(description["frequencies"]), np.log(p)) for p in power])
    if channels == 1:
        # The mean of the three channels of a picture.
        grey = (colours.sum(1) / 3) ** 2
        spectrum, colours, mean = np.einsum("k,khw->hw", grey, spectrum)[None], np.ones((1, 1)), mean.mean(keepdims=True)
    covariance = Stationary(torch.from_numpy(colours), torch.from_numpy(spectrum), width)
    return GaussianPrior(torch.from_numpy(mean)[:, None, None].expand(shape).clone(), covariance)


def _extended(at: np.ndarray, log_f: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """ln power at ln frequencies: linear between the given ones, and by the first slope below them."""
    slope = (log_p[1] - log_p[0]) / (log_f[1] - log_f[0])
    inside = np.interp(at, log_f, log_p)
    return inside + np.minimum(at - log_f[0], 0) * slope


def radial_frequencies(n: int, size: int) -> np.ndarray:
    """n frequencies in cycles per pixel, evenly spaced in their logarithm, of windows of `size` pixels."""
    return np.geomspace(1.5 / size, math.sqrt(0.5), n)
