"""From a measurement, its operator and a model to images: the one function behind every way in."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import ConfigError, OperatorError, ShapeError
from invfusion.names import unknown
from invfusion.operators import LinearOperator, Measurement
from invfusion.restoration.models import load_model
from invfusion.restoration.plausibility import MeasurementWarning, doubts, measured_entries, rms_over, typical_over
from invfusion.restoration.tiles import TiledDenoiser, chosen_tile
from invfusion.rng import generators, randn
from invfusion.samplers import DDNM, DEIS, MMSE, NPPC, SAMPLERS, SampleOutput, Sampler

Method = Literal["sample", "mmse", "nppc"]
# Images that are restored together hold at most so many numbers.
BATCH_NUMBERS = 2**21


@dataclass(frozen=True)
class Restoration:
    """What `restore` returns; all of it float32, on the device of y.

    images: (B, C, H, W) in [-1, 1] units, not clipped, or (B, n_samples, C, H, W) where more than one was asked for.
    mean: (B, C, H, W), the posterior mean where the model knows it, or else the mean of the samples.
    std: (B, C, H, W), the standard deviation of each pixel over the samples or along NPPC's directions; None where a
        method tells nothing of it.
    residual: root mean square of Hx - y over the entries that measure anything, (B,) or (B, n_samples): sigma_y at
        best for a draw of the posterior, less for its mean.
    nfe: network calls that each image took.
    sigma_y: (B,), as stated or estimated.
    doubts: what speaks against y having been made by this operator with this noise, in sentences with figures; each
        was also given as a `MeasurementWarning`.
    components, stds: (B, K, C, H, W) and (B, K), of the method "nppc" alone.
    """

    images: Tensor
    mean: Tensor
    std: Tensor | None
    residual: Tensor
    nfe: int
    sigma_y: Tensor
    doubts: tuple[str, ...] = ()
    components: Tensor | None = None
    stds: Tensor | None = None


def restore(
    y: Tensor,
    operator: LinearOperator,
    model: DenoiserLike | str | Path = "photos",
    *,
    sigma_y: float | Tensor | Literal["estimate"] = 0.0,
    method: Method | str | Sampler = "sample",
    n_samples: int = 1,
    seed: int = 0,
    project: bool | Literal["auto"] = "auto",
    tile: int | None = None,
    progress: bool = True,
    class_labels: Tensor | None = None,
) -> Restoration:
    """Images x that explain y = Hx + sigma_y n, at any size. No autograd graph is built unless a sampler needs one.

    Args:
        y: (B, *M) measurements in pixel units ([-1, 1]), or (*M) of one image.
        operator: H of B images, or of one, which then holds for all.
        model: a denoiser, a checkpoint folder, or a name that `load_model` knows.
        sigma_y: standard deviation of the noise per entry, one number or (B,); "estimate" asks scikit-image's
            estimator (extra `pictures`), for measurements that are pictures.
        method: "sample" draws from the posterior, "mmse" estimates its mean in one network call, "nppc" adds the
            directions of its largest variance (a distilled model); or a sampler, or its name.
        n_samples: draws for each measurement.
        seed: draw i of the batch depends on (seed, i) alone.
        project: whether the images are made to agree with y exactly; "auto": where sigma_y is 0 and H has an inverse.
        tile: side in pixels of the tiles through which the network sees a large image; 0: the whole image at once;
            None: tiles where the image is larger than `tiles.WHOLE_PIXELS`.
        progress: show a bar where a person is watching.
        class_labels: (B,) long, for class-conditional models.

    Raises:
        ConfigError: an unknown method, or a number out of range.
        ShapeError: y, operator, sigma_y and model do not fit together, or y holds NaN.
        OperatorError: the operator lacks what the method needs, or sigma_y is negative or not finite.
    """
    measurement = _measurement(y, operator, sigma_y)
    denoiser = load_model(model, str(measurement.y.device)) if isinstance(model, str | Path) else model
    _check_settings(n_samples, tile, project)
    _check_channels(denoiser, operator)
    sampler = choose_sampler(method, denoiser)
    if sampler.follows == "mean" and n_samples > 1:
        raise ConfigError(f"method '{method}' has one answer; n_samples must be 1, got {n_samples}")
    device = _device(denoiser, y.device)
    run = _Run(
        denoiser=_tiled(denoiser, tile, measurement),
        measurement=measurement.to(device),
        sampler=sampler,
        n_samples=n_samples,
        seed=seed,
        project=project,
        class_labels=None if class_labels is None else class_labels.to(device),
    )
    with torch.no_grad(), _progress(denoiser, progress):
        restoration = run.all()
    for doubt in restoration.doubts:
        warnings.warn(doubt, MeasurementWarning, stacklevel=2)
    return restoration


@dataclass(frozen=True)
class _Run:
    """One call of `restore`, checked and on its device."""

    denoiser: DenoiserLike
    measurement: Measurement
    sampler: Sampler
    n_samples: int
    seed: int
    project: bool | Literal["auto"]
    class_labels: Tensor | None

    def all(self) -> Restoration:
        outputs, rows_done = [], []
        for rows in self._batches():
            outputs.append(self._batch(rows))
            rows_done += rows
        images = torch.cat([output.x for output in outputs]).to(torch.float32)
        seen = measured_entries(self.measurement.operator)
        gaps = [
            self._gap(image[None], row // self.n_samples, seen) for row, image in zip(rows_done, images, strict=True)
        ]
        residual, typical = (torch.stack(parts) for parts in zip(*gaps, strict=True))
        return self._restoration(images, residual, typical, outputs)

    def _batches(self) -> Iterator[list[int]]:
        """Numbers of draws, image by image, as many at once as memory allows."""
        total = self.measurement.operator.batch_size * self.n_samples
        size = max(1, BATCH_NUMBERS // torch.Size(self.measurement.operator.image_shape).numel())
        for start in range(0, total, size):
            yield list(range(start, min(start + size, total)))

    def _batch(self, rows: list[int]) -> SampleOutput:
        sources = [row // self.n_samples for row in rows]
        part = self._part(sources)
        draws = generators(self.seed, "restore", rows)
        noise = randn(part.operator.image_shape, draws, device=part.y.device)
        labels = None if self.class_labels is None else self.class_labels[sources]
        output = self.sampler.sample(self.denoiser, part, noise, generators=draws, class_labels=labels)
        return SampleOutput(self._projected(output.x, part), output.nfe, output.components, output.stds)

    def _projected(self, x: Tensor, part: Measurement) -> Tensor:
        if self.project is False or (self.project == "auto" and not bool((part.sigma_y == 0).any())):
            return x
        try:
            projected = part.operator.project(x, part.y)
        except OperatorError:
            if self.project == "auto":
                return x
            raise
        exact = part.sigma_y == 0 if self.project == "auto" else torch.ones_like(part.sigma_y, dtype=torch.bool)
        return projected.where(exact.view(-1, 1, 1, 1), x)

    def _part(self, rows: list[int]) -> Measurement:
        return self.measurement if rows == list(range(len(self.measurement.y))) else self.measurement.select(rows)

    def _mean(self, draws: Tensor) -> Tensor:
        """Of draws (B, n, C, H, W), or what they are draws around, where the model knows that itself."""
        exact = getattr(self.denoiser, "samplers", {}).get("mmse")
        if exact is None or draws.shape[1] == 1:
            return draws.mean(1)
        whole = self.measurement
        unused = generators(self.seed, "restore", range(len(draws)))
        output = exact.sample(self.denoiser, whole, torch.zeros_like(draws[:, 0]), generators=unused)
        return self._projected(output.x, whole)

    def _gap(self, x: Tensor, source: int, seen: Tensor) -> tuple[Tensor, Tensor]:
        """How far Hx is from y: root mean square, and typically."""
        part = self._part([source])
        gap, entries = part.operator.H(x) - part.y, seen[source : source + 1]
        return rms_over(gap, entries)[0], typical_over(gap, entries)[0]

    def _restoration(
        self, images: Tensor, residual: Tensor, typical: Tensor, outputs: list[SampleOutput]
    ) -> Restoration:
        n, measurement = self.n_samples, self.measurement
        grouped = images.view(-1, n, *images.shape[1:])
        mean = self._mean(grouped)
        components = stds = std = None
        if outputs[0].components is not None:
            components = torch.cat([output.components for output in outputs if output.components is not None])
            stds = torch.cat([output.stds for output in outputs if output.stds is not None])
            std = (components * stds[:, :, None, None, None]).square().sum(1).sqrt()
        elif n > 1:
            std = grouped.std(1)
        return Restoration(
            images=images if n == 1 else grouped,
            mean=mean,
            std=std,
            residual=residual if n == 1 else residual.view(-1, n),
            nfe=outputs[0].nfe,
            sigma_y=measurement.sigma_y,
            doubts=doubts(measurement, mean, typical.view(-1, n).amin(1), of_draws=self.sampler.follows != "mean"),
            components=components,
            stds=stds,
        )


def choose_sampler(method: str | Sampler, denoiser: DenoiserLike) -> Sampler:
    """The algorithm that a method means with a model. Raises `ConfigError` where there is none.

    A model may bring its own, as {method: sampler} in `samplers`. Models that see the measurement are sampled along
    the probability-flow ODE (DEIS, 16 calls); others by DDNM, which brings the measurement in itself.
    """
    if isinstance(method, Sampler):
        return method
    own = getattr(denoiser, "samplers", {})
    if method in own:
        return own[method]  # type: ignore[no-any-return]
    sees_measurement = getattr(denoiser, "is_conditional", True)
    if method == "mmse" and not sees_measurement:
        raise ConfigError(
            "this model sees no measurement, so it cannot give the posterior mean in one call; use method='sample' "
            "with several n_samples and take the mean"
        )
    meanings: dict[str, Callable[[], Sampler]] = {
        "sample": (lambda: DEIS(n_steps=16)) if sees_measurement else DDNM,
        "mmse": MMSE,
        "nppc": NPPC,
    }
    meanings = {**SAMPLERS, **meanings}
    if method not in meanings:
        raise ConfigError(unknown("method", method, meanings))
    return meanings[method]()


def _measurement(y: Tensor, operator: LinearOperator, sigma_y: float | Tensor | str) -> Measurement:
    shape = operator.measurement_shape
    y = torch.as_tensor(y, dtype=torch.float32)
    if tuple(y.shape) == shape:
        y = y[None]
    if tuple(y.shape[1:]) != shape or len(y) == 0:
        raise ShapeError(
            f"y has the shape {tuple(y.shape)}; operator '{operator.kind}' measures images {operator.image_shape} as "
            f"(B, {', '.join(map(str, shape))})"
        )
    if not bool(y.isfinite().all()):
        raise ShapeError(f"y holds {int((~y.isfinite()).sum())} infinite or not-a-number values")
    operator = _in_float32(operator, y.device)
    if isinstance(sigma_y, str):
        if sigma_y != "estimate":
            raise ConfigError(f"sigma_y is a number, one for each image, or 'estimate', got {sigma_y!r}")
        sigma_y = estimate_noise(y, operator)
    return Measurement(y, operator, sigma_y.float() if isinstance(sigma_y, Tensor) else sigma_y)


def _in_float32(operator: LinearOperator, device: torch.device) -> LinearOperator:
    """The operator on a device, in single precision; the caller's own stays as it is, and keeps what it has derived."""
    own = operator.tensors().values()
    if all(t.device == device and t.dtype != torch.float64 for t in own):
        return operator
    return copy.deepcopy(operator).to(device).float()


def estimate_noise(y: Tensor, operator: LinearOperator) -> Tensor:
    """The noise of measurements that are pictures, (B, C, h, w) -> (B,), by the median of their wavelet details.

    Fine texture counts as noise: clean photographs are told to have about 0.01 to 0.03. Raises `ConfigError` where y
    is no picture or has holes, or scikit-image is not installed. Source: Donoho & Johnstone 1994, as in scikit-image.
    """
    if y.ndim != 4 or not bool(measured_entries(operator).all()):
        raise ConfigError(f"the noise of a measurement by '{operator.kind}' cannot be estimated; state sigma_y")
    try:
        from skimage.restoration import estimate_sigma
    except ImportError:
        raise ConfigError(
            "sigma_y='estimate' needs scikit-image; pip install -e '.[pictures]' in invfusion's repository, "
            "or state sigma_y"
        ) from None
    rows = (row.cpu().double().numpy() for row in y)
    levels = [estimate_sigma(row, channel_axis=0, average_sigmas=True) for row in rows]
    return torch.tensor(levels, dtype=torch.float32, device=y.device)


def _check_settings(n_samples: int, tile: int | None, project: bool | str) -> None:
    if n_samples < 1:
        raise ConfigError(f"n_samples must be at least 1, got {n_samples}")
    if tile is not None and tile < 0:
        raise ConfigError(f"tile is a side in pixels, or 0 for none, got {tile}")
    if project not in (True, False, "auto"):
        raise ConfigError(f"project must be True, False or 'auto', got {project!r}")


def _check_channels(denoiser: DenoiserLike, operator: LinearOperator) -> None:
    shape = getattr(denoiser, "image_shape", None)
    if shape is not None and shape[0] != operator.image_shape[0]:
        raise ShapeError(
            f"the model takes images of {shape[0]} channels, the operator acts on images of {operator.image_shape[0]}"
        )


def _device(denoiser: DenoiserLike, default: torch.device) -> torch.device:
    first = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    return default if first is None else first.device


def _tiled(denoiser: DenoiserLike, tile: int | None, measurement: Measurement) -> DenoiserLike:
    sides = chosen_tile(denoiser, tile, measurement)
    return denoiser if sides is None else TiledDenoiser(denoiser, sides, measurement)


@contextmanager
def _progress(denoiser: DenoiserLike, wanted: bool) -> Iterator[None]:
    """A bar that counts network calls, on a terminal."""
    if not wanted or not isinstance(denoiser, nn.Module):
        yield
        return
    from tqdm import tqdm

    with tqdm(desc="network calls", unit="", leave=False, disable=None) as bar:

        def advance(*_: Any) -> None:
            bar.update()

        handle = denoiser.register_forward_hook(advance)
        try:
            yield
        finally:
            handle.remove()
