"""`photos`: a Gaussian model of photographs of any size, whose posterior mean a network refines.

What photographs have in common at every place is their mean colour, how their colours vary together and how much power
each spatial frequency carries. `photos.json` holds these few numbers, with what they were fitted to; `fit_photos.py`
beside this file makes it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from invfusion.errors import CheckpointError, ShapeError
from invfusion.gaussian import Prior
from invfusion.operators import Bayer, Blur, MaskOperator, Measurement
from invfusion.operators.iterative import Map, conjugate_gradients
from invfusion.restoration.refinement import LEAST_NOISE, NO_NOISE, knows, refined, true_to_y
from invfusion.rng import randn
from invfusion.samplers import GaussianDraws, Sampler, Wiener

PHOTOS_FILE = Path(__file__).with_name("photos.json")
# Pixels beyond the image that the prior covers too, so that opposite edges are not neighbours.
MARGIN = 48
MAX_ITERATIONS = 120
# Of the systems: relative residuals from which on the images stay as they are.
TOLERANCE = 3e-3
# Deviations in pixels of the bells whose difference are the middle frequencies, and of the one that says how far
# around a pixel its contrast is looked for; the least contrast.
BAND_AND_AROUND, LEAST_CONTRAST = (1.5, 5.0, 10.0), 0.03
# Missing pixels this far, on the average, from the nearest known one make holes.
FAR = 2.0


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
        return PhotosPosterior(_law(self.description, *shape[1:]), tuple(shape), measurement)

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

    All of it follows from one map, `explained`: C H^T (H C H^T + sigma_y^2)^-1, found by conjugate gradients of at most
    `MAX_ITERATIONS` steps, each a few Fourier transforms, so that memory grows with the number of pixels alone.
    """

    def __init__(self, law: "Stationary", shape: tuple[int, ...], measurement: Measurement | None) -> None:
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
        if self.measurement is None or not knows(self.measurement):
            return self.gaussian_mean
        return refined(self.gaussian_mean, self.measurement)

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
        operator = None if self.measurement is None else self.measurement.operator
        if operator is None or (isinstance(operator, MaskOperator) and bool(operator.mask.bool().all())):
            return self.law.mean.new_ones(())
        known = operator.mask.amax(1, keepdim=True) if isinstance(operator, MaskOperator) else None
        return self.law.contrast(self.mean, known)

    def _moved(self, x: Tensor, law: "Stationary", noise: Tensor | float = 0.0) -> Tensor:
        """x and what the measurement says beyond H x + noise."""
        if self.measurement is None:
            return x.contiguous()
        gap = self.measurement.y - self.measurement.operator.H(x.contiguous()) - noise
        return x + explained(law, self.measurement, gap)


def explained(law: "Stationary", measurement: Measurement, gap: Tensor) -> Tensor:
    """C H^T (H C H^T + sigma_y^2)^-1 gap: (B, *M) -> (B, C, H, W)."""
    operator, n_axes = measurement.operator, len(measurement.operator.measurement_shape)
    if isinstance(operator, MaskOperator | Bayer):
        seen = operator.mask if isinstance(operator, MaskOperator) else operator.sensor[None]
        return _filled_in(law, seen, measurement.sigma_y, operator.H_adjoint(gap))
    if isinstance(operator, Blur) and operator.kernel.shape[1] == 1:
        return _deblurred(law, operator, measurement.sigma_y, gap)
    noise = measurement.sigma_y.square().view(-1, *[1] * n_axes)

    def system(u: Tensor) -> Tensor:
        return operator.H(law.filtered(operator.H_adjoint(u))) + noise * u

    precondition = _stationary_inverse(law, measurement, system)
    u = _solved(system, gap, n_axes, precondition)
    return law.filtered(operator.H_adjoint(u))


def _stationary_inverse(
    law: "Stationary", measurement: Measurement, system: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor] | None:
    """An approximate inverse of a system that is the same at every place, as those of blur and downsampling are.

    Its response to one bright entry in the middle is its spectrum, but for the borders. None where measurements are no
    pictures of the image's channels.
    """
    shape = measurement.operator.measurement_shape
    if len(shape) != 3 or shape[0] != len(law.colours):
        return None
    _, height, width = shape
    middle = (height // 2, width // 2)
    impulse = torch.zeros_like(measurement.y)
    impulse[..., middle[0], middle[1]] = 1
    responses = []
    for colour in law.colours:
        response = system(impulse * colour.view(-1, 1, 1))
        responses.append(torch.einsum("c,bchw->bhw", colour, response))
    # Faded out towards the borders by a window of positive spectrum, which leaves a positive one.
    faded = torch.stack(responses, dim=1) * torch.outer(*(_parzen(n, impulse) for n in (height, width)))
    spectrum = torch.fft.rfft2(faded.roll((-middle[0], -middle[1]), dims=(-2, -1))).real
    spectrum = spectrum.clamp(min=measurement.sigma_y.square().view(-1, 1, 1, 1) + 1e-8 * spectrum.amax((-2, -1), True))

    def inverse(r: Tensor) -> Tensor:
        z = torch.fft.rfft2(law.planes(r)) / spectrum
        return law.images(torch.fft.irfft2(z, s=(height, width)))

    return inverse


def _parzen(n: int, like: Tensor) -> Tensor:
    """A bell of n entries around n // 2 whose Fourier transform is nowhere negative. Source: Parzen 1961."""
    u = (torch.arange(n, device=like.device, dtype=like.dtype) - n // 2).abs() / (n / 2)
    return torch.where(u <= 0.5, 1 - 6 * u.square() * (1 - u), 2 * (1 - u).clamp(min=0) ** 3)


def _filled_in(law: "Stationary", mask: Tensor, sigma_y: Tensor, gap: Tensor) -> Tensor:
    """`explained` for masks (1 or B, 1 or C, H, W), and gaps (B, C, H, W) that are zero where nothing is seen: the
    missing pixels, those beyond the image too, are what was not measured.
    """
    height, width = gap.shape[-2:]
    beyond = (0, law.size[1] - width, 0, law.size[0] - height)
    seen, measured = nn.functional.pad(mask, beyond), nn.functional.pad(gap, beyond)
    exact = bool((sigma_y < NO_NOISE).all())
    noise = sigma_y.clamp(min=0 if exact else NO_NOISE).square().view(-1, 1, 1, 1) * (not exact)
    completed = _completed(law, law.spectrum + noise, measured, 1 - seen, _stiffness(law, mask))
    if not exact:
        completed = law.filtered(completed, lambda S: S / (S + noise))
    return completed[..., :height, :width]


def _deblurred(law: "Stationary", operator: Blur, sigma_y: Tensor, gap: Tensor) -> Tensor:
    """`explained` for blurs: what lies beyond the measured picture is what was not measured.

    So a solution that is not quite reached shows near the borders alone. Of a boundary that only imitates what lay
    beyond the image, the entries that it touched are left out.
    """
    noise = sigma_y.clamp(min=LEAST_NOISE).square().view(-1, 1, 1, 1)
    height, width = operator.image_shape[1:]
    (h, w), circular = operator.kernel.shape[-2:], operator.boundary == "circular"
    if circular:
        law = law.on(height, width)
    transfer = torch.fft.rfft2(operator.kernel, s=law.size)
    power = transfer.abs().square() * law.spectrum + noise
    if circular:
        measured = gap.roll((h // 2, w // 2), dims=(-2, -1))
    else:
        above, left = (0, 0) if operator.boundary == "valid" else (h - 1 - h // 2, w - 1 - w // 2)
        measured, unknown = gap.new_zeros(*gap.shape[:2], *law.size), gap.new_ones(1, 1, *law.size)
        inner = gap[..., above : above + height - h + 1, left : left + width - w + 1]
        measured[..., h - 1 : height, w - 1 : width] = inner
        unknown[..., h - 1 : height, w - 1 : width] = 0
        measured = _completed(law, power, measured, unknown)
    wiener = law.spectrum * transfer.conj() / power
    return law.filtered(measured, lambda _: wiener)[..., :height, :width]


def _completed(law: "Stationary", power: Tensor, measured: Tensor, unknown: Tensor, stiffness: float = 0.0) -> Tensor:
    """Measurements on the whole grid, which are zero where they are unknown (1), as the law K of measurements with this
    power spectrum continues them: z there solves N K^-1 N z = -N K^-1 measured, N keeping what is unknown.

    The Wiener filter of the whole grid, C H^T K^-1, then gives what the measured entries alone say.
    """

    def system(z: Tensor) -> Tensor:
        return unknown * law.filtered(unknown * z, lambda _: 1 / power)

    def precondition(r: Tensor) -> Tensor:
        return unknown * law.filtered(r, lambda _: power / (1 + stiffness * power))

    b = -unknown * law.filtered(measured, lambda _: 1 / power)
    return measured + _solved(system, b, 3, precondition)


def _solved(system: Map, b: Tensor, n_axes: int, precondition: Map | None) -> Tensor:
    return conjugate_gradients(
        system, b, n_axes, max_iterations=MAX_ITERATIONS, precondition=precondition, tolerance=TOLERANCE
    ).value


def _stiffness(law: "Stationary", mask: Tensor) -> float:
    """What known pixels add to the precision of the missing ones around them, where these lie one by one: that of the
    waves that fit in between, four times as long as the distance to the nearest known pixel. Holes feel nothing of it.
    """
    distances = distance_transform_edt((mask[0, 0] == 0).cpu().numpy())
    distance = float(distances[distances > 0].mean()) if bool((distances > 0).any()) else FAR
    if distance >= FAR:
        return 0.0
    return float(1 / law.spectrum[0, min(round(law.size[0] / (4 * distance)), law.size[0] // 2), 0])


@dataclass(frozen=True)
class Stationary:
    """A stationary Gaussian on a grid of `size` rows and columns, somewhat larger than the image.

    mean: (C, 1, 1); colours: (C, C) orthonormal, a combination of channels per row; spectrum: (C, H', W' // 2 + 1), the
    variance of each frequency.
    """

    mean: Tensor
    colours: Tensor
    spectrum: Tensor
    size: tuple[int, int]

    def to(self, device: torch.device | str) -> "Stationary":
        return replace(
            self, mean=self.mean.to(device), colours=self.colours.to(device), spectrum=self.spectrum.to(device)
        )

    def on(self, height: int, width: int) -> "Stationary":
        """The same on a grid of another size, the spectrum interpolated."""
        rows = (torch.fft.fftfreq(height) % 1 * self.size[0]).round().long() % self.size[0]
        columns = (torch.fft.rfftfreq(width) * self.size[1]).round().long().clamp(max=self.spectrum.shape[2] - 1)
        return replace(self, spectrum=self.spectrum[:, rows][:, :, columns], size=(height, width))

    def planes(self, images: Tensor) -> Tensor:
        """The combinations of the channels of images (B, C, H, W)."""
        return torch.einsum("kc,bchw->bkhw", self.colours, images)

    def images(self, planes: Tensor) -> Tensor:
        """Back from `planes`, (B, C, H, W)."""
        return torch.einsum("kc,bkhw->bchw", self.colours, planes)

    def filtered(self, x: Tensor, gain: Callable[[Tensor], Tensor] = lambda S: S) -> Tensor:
        """gain(C) x for x (B, C, H, W), which is zero beyond its borders; without a gain, the covariance times x."""
        z = torch.fft.rfft2(self.planes(x), s=self.size)
        y = torch.fft.irfft2(z * gain(self.spectrum), s=self.size)[..., : x.shape[-2], : x.shape[-1]]
        return self.images(y)

    def contrast(self, x: Tensor, known: Tensor | None) -> Tensor:
        """The local deviation of middle frequencies in x (B, C, H, W) over the law's; known: weights (B, 1, H, W)."""
        f = torch.hypot(torch.fft.fftfreq(self.size[0])[:, None], torch.fft.rfftfreq(self.size[1])[None])
        fine, coarse, around = (torch.exp(-2 * (torch.pi * n * f.to(x.device)) ** 2) for n in BAND_AND_AROUND)
        band = fine - coarse
        expected = torch.fft.irfft2(self.spectrum[0] * band**2, s=self.size)[0, 0]
        known = torch.ones_like(x[:, :1]) if known is None else known.to(x)
        found = self._convolved(self.planes(x - self.mean)[:, :1], band).square()
        near = self._convolved(known, around).clamp(min=1e-6)
        share: Tensor = self._convolved(found * known, around) / near / expected
        return share.clamp(min=LEAST_CONTRAST**2).sqrt()

    def _convolved(self, planes: Tensor, transfer: Tensor) -> Tensor:
        wide: Tensor = torch.fft.irfft2(torch.fft.rfft2(planes, s=self.size) * transfer, s=self.size)
        return wide[..., : planes.shape[-2], : planes.shape[-1]]


@cache
def load_photos() -> Photos:
    """The shipped model. Raises `CheckpointError` where its file is missing or damaged."""
    try:
        return Photos(json.loads(PHOTOS_FILE.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{PHOTOS_FILE}: cannot be read ({error}); install invfusion again") from error


def _law(description: dict[str, Any], channels: int, height: int, width: int) -> Stationary:
    colours, mean = np.array(description["colours"]), np.array(description["mean"])
    size = (int(next_fast_len(height + MARGIN, real=True)), int(next_fast_len(width + MARGIN, real=True)))
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]).clip(min=0.5 / max(size))
    ladder = np.log(description["frequencies"])
    spectrum = np.exp([_extended(np.log(f), ladder, np.log(power)) for power in description["power"]])
    if channels == 1:
        # The mean of the three channels of a picture.
        shares = (colours.sum(1) / 3) ** 2
        spectrum, colours, mean = np.einsum("k,khw->hw", shares, spectrum)[None], np.ones((1, 1)), mean.mean()[None]
    centre, axes, variances = (torch.from_numpy(np.asarray(a)).float() for a in (mean, colours, spectrum))
    return Stationary(centre[:, None, None], axes, variances, size)


def _extended(at: NDArray[np.float64], log_f: NDArray[np.float64], log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln power at ln frequencies: linear between the given ones, and by the first slope below them."""
    slope = (log_p[1] - log_p[0]) / (log_f[1] - log_f[0])
    inside: NDArray[np.float64] = np.interp(at, log_f, log_p)
    below: NDArray[np.float64] = np.minimum(at - log_f[0], 0) * slope
    return inside + below
