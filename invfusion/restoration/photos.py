"""`photos`: a Gaussian model of photographs of any size, whose posterior mean a network refines.

What photographs have in common at every place is their mean colour, how their colours vary together and how much power
each spatial frequency carries. `photos.json` holds these few numbers, with what they were fitted to; `fit_photos.py`
beside this file makes it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from torch import Tensor

from invfusion.errors import CheckpointError, ShapeError
from invfusion.gaussian import Prior
from invfusion.operators import MaskOperator, Measurement
from invfusion.restoration.refinement import knows, refined, true_to_y
from invfusion.restoration.stationary import Stationary
from invfusion.restoration.tiles import factor_of
from invfusion.restoration.wiener import explained
from invfusion.rng import randn
from invfusion.samplers import GaussianDraws, Sampler, Wiener

PHOTOS_FILE = Path(__file__).with_name("photos.json")
# Pixels beyond the image that the prior covers too, so that opposite edges are not neighbours.
MARGIN = 48


class Photos(Prior):
    """E[x | x_sigma, y] of the Gaussian model, for images (B, C, H, W) of any size with C = 1 (grey) or 3.

    description: the content of `photos.json`.
    """

    n_classes = 0
    is_conditional = True
    sees_whole_image = True
    samplers: ClassVar[dict[str, Sampler]] = {"sample": GaussianDraws(), "mmse": Wiener()}

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__()
        self.description = description

    def law_of(self, shape: Sequence[int], measurement: Measurement | None = None) -> "PhotosPosterior":
        """The law of images (B, C, H, W) given their measurement. Raises `ShapeError` unless C is 1 or 3."""
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise ShapeError(f"the model 'photos' knows images (B, C, H, W) of 1 or 3 channels, got {tuple(shape)}")
        multiple = 1 if measurement is None else factor_of(measurement)
        return PhotosPosterior(_law(self.description, shape[1:], multiple), tuple(shape), measurement)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,  # noqa: ARG002 - photographs have no classes
    ) -> Tensor:
        """x (B, C, H, W) at noise levels sigma (B,) or () -> (B, C, H, W) float32."""
        return self.law_of(x.shape, measurement).denoise(x, sigma)


class PhotosPosterior:
    """The stationary Gaussian N(mean, C) of images (B, C, H, W), given their measurement; float32.

    All of it follows from one map, `explained`: C H^T (H C H^T + sigma_y^2)^-1, found by conjugate gradients of few
    steps, each a few Fourier transforms, so that memory grows with the number of pixels alone.
    """

    def __init__(self, law: Stationary, shape: tuple[int, ...], measurement: Measurement | None) -> None:
        self.shape = shape
        self.measurement = None if measurement is None or measurement.y.numel() == 0 else measurement
        self.law = law.to("cpu" if measurement is None else measurement.y.device)

    @cached_property
    def gaussian_mean(self) -> Tensor:
        """E[x | y], (B, C, H, W): the Wiener filter's estimate."""
        return self._moved(self.law.mean.expand(self.shape), self.law)

    @cached_property
    def mean(self) -> Tensor:
        """The Gaussian's, refined by the network where it knows such measurements."""
        known = None if self.measurement is None else knows(self.measurement)
        if self.measurement is None or known is None or not bool(known.any()):
            return self.gaussian_mean
        better = refined(self.gaussian_mean, self.measurement)
        return better if bool(known.all()) else torch.where(known.view(-1, 1, 1, 1), better, self.gaussian_mean)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_sigma, y] for x_sigma (B, C, H, W) of one noise level or of levels (B,), positive."""
        variance = sigma.float().reshape(-1).expand(len(x)).square()
        if len(x) > 1 and bool((variance != variance[0]).any()):
            rows = range(len(x))
            parts = [None if self.measurement is None else self.measurement.select([i]) for i in rows]
            laws = [PhotosPosterior(self.law, (1, *self.shape[1:]), part) for part in parts]
            return torch.cat([law.denoise(x[i : i + 1], sigma[i]) for i, law in zip(rows, laws, strict=True)])
        s2 = float(variance[0])
        law = self.law.to(x.device)
        shrunk = law.filtered(x - law.mean, lambda S: S / (S + s2))
        return self._moved(law.mean + shrunk, replace(law, spectrum=law.spectrum * s2 / (law.spectrum + s2)))

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One draw for each image, row i from generator i: the mean and a Gaussian deviation, locally scaled.

        An image and a measurement are drawn from the prior, and the image is moved by what the estimates for the actual
        and for the drawn measurement differ. Source: Hoffman & Ribak 1991.
        """
        law = self.law
        white = randn((self.shape[1], *law.size), generators, device=law.mean.device)
        drawn = law.mean + law.filtered(white, torch.sqrt)[..., : self.shape[2], : self.shape[3]]
        if self.measurement is None:
            return drawn
        levels = self.measurement.sigma_y.view(-1, *[1] * (self.measurement.y.ndim - 1))
        noise = randn(self.measurement.operator.measurement_shape, generators, device=law.mean.device)
        draws = self.mean + self.contrast * (self._moved(drawn, law, levels * noise) - self.gaussian_mean)
        return true_to_y(draws, self.measurement)

    @cached_property
    def contrast(self) -> Tensor:
        """How much more or less than an average photograph this one varies around each pixel, (B, 1, H, W).

        One spectrum for all of a photograph has as much detail in the sky as in leaves; scaled by the contrast of the
        estimate, by that of the known pixels around a hole, it has not. Ones where noise is all that happened: noise,
        not contrast, then says what remains open. Source: Portilla, Strela, Wainwright & Simoncelli 2003.
        """
        if self.measurement is None:
            return self.law.mean.new_ones(())
        operator = self.measurement.operator
        if not isinstance(operator, MaskOperator):
            return self.law.contrast(self.mean, None)
        is_whole = operator.mask.bool().flatten(1).all(1).view(-1, 1, 1, 1)
        if bool(is_whole.all()):
            return self.law.mean.new_ones(())
        found = self.law.contrast(self.mean, operator.mask.amax(1, keepdim=True))
        return torch.where(is_whole, torch.ones_like(found), found)

    def _moved(self, x: Tensor, law: Stationary, noise: Tensor | float = 0.0) -> Tensor:
        """x and what the measurement says beyond H x + noise."""
        if self.measurement is None:
            return x.contiguous()
        gap = self.measurement.y - self.measurement.operator.H(x.contiguous()) - noise
        return x + explained(law, self.measurement, gap)


@cache
def load_photos() -> Photos:
    """The shipped model. Raises `CheckpointError` where its file is missing or damaged."""
    try:
        return Photos(json.loads(PHOTOS_FILE.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{PHOTOS_FILE}: cannot be read ({error}); install invfusion again") from error


def _law(description: dict[str, Any], image_shape: Sequence[int], multiple: int) -> Stationary:
    """Of images of this size, on a grid whose sides are multiples of the factor by which an operator reduces them."""
    channels, height, width = image_shape
    colours, mean = np.array(description["colours"]), np.array(description["mean"])
    size = tuple(multiple * int(next_fast_len(-(-(n + MARGIN) // multiple))) for n in (height, width))
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]).clip(min=0.5 / max(size))
    ladder = np.log(description["frequencies"])
    spectrum = np.exp([_extended(np.log(f), ladder, np.log(power)) for power in description["power"]])
    if channels == 1:
        # The mean of the three channels of a picture.
        shares = (colours.sum(1) / 3) ** 2
        spectrum, colours, mean = np.einsum("k,khw->hw", shares, spectrum)[None], np.ones((1, 1)), mean.mean()[None]
    centre, axes, variances = (torch.from_numpy(np.asarray(a)).float() for a in (mean, colours, spectrum))
    return Stationary(centre[:, None, None], axes, variances, (size[0], size[1]))


def _extended(at: NDArray[np.float64], log_f: NDArray[np.float64], log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln power at ln frequencies: linear between the given ones, and by the first slope below them."""
    slope = (log_p[1] - log_p[0]) / (log_f[1] - log_f[0])
    inside: NDArray[np.float64] = np.interp(at, log_f, log_p)
    below: NDArray[np.float64] = np.minimum(at - log_f[0], 0) * slope
    return inside + below
