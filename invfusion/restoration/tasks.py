"""What happened to a picture, as a person states it, and its restoration: the command line and the service share it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from invfusion import __version__
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import ConfigError, InvFusionError, ShapeError
from invfusion.operators import Blur, Downsampling, Inpainting, LinearOperator, MaskOperator, Measurement
from invfusion.restoration.pictures import Picture
from invfusion.restoration.restoring import Restoration, estimate_noise, restore
from invfusion.rng import generators, randn

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """How pictures were measured.

    description: in words, for the record. operator_for: from the shape (C, h, w) of a measured picture to the operator.
    takes_pictures: whether it is for pictures alone. margins: rows
    above and below and columns left and right of the restored image that the measured picture does not show.
    is_exact: whether measured values stand in the file as they are; else its rounding counts as noise.
    """

    description: Mapping[str, Any]
    operator_for: Callable[[Shape], LinearOperator]
    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    factor: int = 1
    is_exact: bool = False
    takes_pictures: bool = True

    def measured_shape(self, image: Shape) -> Shape:
        """The shape of the picture that is measured of a clean one, of which a factor's remainder is cut off."""
        above, below, left, right = self.margins
        channels, height, width = image
        return channels, (height - above - below) // self.factor, (width - left - right) // self.factor

    def restored_sides(self, measured: Shape) -> tuple[int, int]:
        """Rows and columns that are solved for where a picture (C, h, w) was measured, `margins` included."""
        above, below, left, right = self.margins
        _, height, width = measured
        return height * self.factor + above + below, width * self.factor + left + right

    def framed(self, image: Tensor) -> Tensor:
        """The part of a restored image (B, C, H, W) that the measured picture shows."""
        above, below, left, right = self.margins
        return image[..., above : image.shape[-2] - below, left : image.shape[-1] - right]


def denoising() -> Task:
    """Every pixel was measured, with noise."""
    return Task({"kind": "denoising"}, lambda shape: MaskOperator(shape, torch.ones(1, 1, *shape[1:])))


def inpainting(mask: Tensor, source: str = "") -> Task:
    """Pixels where the mask (1, 1, H, W) is 1 are missing."""

    def operator_for(shape: Shape) -> LinearOperator:
        if tuple(mask.shape[-2:]) != shape[1:]:
            raise ShapeError(
                f"the mask is {mask.shape[-2]}x{mask.shape[-1]} (rows x columns), the picture {shape[1]}x{shape[2]}; "
                "make the mask of the picture's size"
            )
        return Inpainting(shape, mask)

    share = round(float(mask.mean()), 4)
    return Task({"kind": "inpainting", "mask": source, "missing": share}, operator_for, is_exact=True)


def deblurring(kernel: Tensor, boundary: str, source: str = "") -> Task:
    """A blur by a kernel (h, w) or (3, h, w)."""
    h, w = kernel.shape[-2:]
    above, left = h - 1 - h // 2, w - 1 - w // 2
    margins = (above, h - 1 - above, left, w - 1 - left) if boundary == "valid" else (0, 0, 0, 0)

    def operator_for(shape: Shape) -> LinearOperator:
        own = kernel[None] if kernel.ndim == 3 else kernel
        if kernel.ndim == 3 and shape[0] == 1:
            own = kernel.mean(0)
        image = (shape[0], shape[1] + margins[0] + margins[1], shape[2] + margins[2] + margins[3])
        return Blur(image, own, boundary)  # type: ignore[arg-type]

    total = [round(float(s), 6) for s in kernel.sum((-2, -1)).reshape(-1)]
    description = {"kind": "blur", "kernel": source, "size": [h, w], "sum": total, "boundary": boundary}
    return Task(description, operator_for, margins=margins)


def enlarging(factor: int, filter: str) -> Task:
    """A reduction by a whole factor."""

    def operator_for(shape: Shape) -> LinearOperator:
        image = (shape[0], shape[1] * factor, shape[2] * factor)
        return Downsampling(image, factor, filter)  # type: ignore[arg-type]

    return Task({"kind": "downsampling", "factor": factor, "filter": filter}, operator_for, factor=factor)


def by_operator(make: Callable[[Shape], LinearOperator], source: str) -> Task:
    """An operator of the user's own."""
    return Task({"kind": "operator", "operator": source}, make, takes_pictures=False)


@dataclass(frozen=True)
class Request:
    """How to restore; the fields are those of `restore`. sigma_y may be "estimate". device: where y and H lie, which is
    where a model without weights of its own works."""

    model: DenoiserLike
    model_facts: Mapping[str, str] = field(default_factory=dict)
    sigma_y: float | str = 0.0
    method: str = "sample"
    n_samples: int = 1
    seed: int = 0
    tile: int | None = None
    progress: bool = True
    device: str = "cpu"


@dataclass(frozen=True)
class Restored:
    """Restored pictures, framed as the measured one.

    mean: of the samples, or the one estimate; samples: each draw, where there are several; std: (1, C, H, W) in pixel
    units, or None; record: JSON-able facts.
    """

    mean: Picture
    samples: tuple[Picture, ...]
    std: Tensor | None
    record: dict[str, Any]


def restore_picture(picture: Picture, task: Task, request: Request, y: Tensor | None = None) -> Restored:
    """Restore one picture. y: its measurement (1, *M), where that is not the picture itself.

    Raises `InvFusionError` where task, picture and model do not fit together.
    """
    started = time.perf_counter()
    y = picture.image if y is None else y
    if task.takes_pictures and y.ndim != 4:
        kind = task.description["kind"]
        raise ShapeError(f"'{kind}' is of pictures (C, H, W), got an array {tuple(y.shape[1:])}; state its --operator")
    y, operator, is_grey = _with_operator(y.to(request.device), task, request.model)
    sigma_y = _noise_level(request.sigma_y, task, picture, y, operator)
    restoration = restore(
        y,
        operator,
        request.model,
        sigma_y=sigma_y,
        method=request.method,
        n_samples=request.n_samples,
        seed=request.seed,
        tile=request.tile,
        progress=request.progress,
    )
    mean, images = restoration.mean.cpu(), restoration.images.reshape(-1, *restoration.mean.shape[1:]).cpu()
    std = None if restoration.std is None else restoration.std.cpu()
    if is_grey:
        mean, images = mean.mean(1, keepdim=True), images.mean(1, keepdim=True)
        std = None if std is None else std.mean(1, keepdim=True)
    if not bool(images.isfinite().all()):
        raise ShapeError("the restoration did not stay finite: the operator or sigma_y is far from the measurement's")
    framed = [picture.with_image(task.framed(image[None])) for image in images]
    return Restored(
        mean=picture.with_image(task.framed(mean)),
        samples=tuple(framed) if len(framed) > 1 else (),
        std=None if std is None else task.framed(std),
        record=_record(task, request, restoration, time.perf_counter() - started),
    )


def _with_operator(y: Tensor, task: Task, model: DenoiserLike) -> tuple[Tensor, LinearOperator, bool]:
    """y (1, *M), its operator, and whether the restored picture is grey, of which each channel is the same.

    A grey measurement may be of a picture with colours, as a sensor's. A grey picture becomes one of three channels
    where the operator or the model takes no other.
    """
    shape: Shape = tuple(y.shape[1:])  # type: ignore[assignment]
    if y.ndim != 4 or y.shape[1] != 1:
        return y, task.operator_for(shape), False
    coloured: Shape = (3, shape[1], shape[2])
    try:
        operator = task.operator_for(shape)
    except InvFusionError:
        operator = task.operator_for(coloured)
    is_grey = operator.image_shape[0] == 1
    if is_grey and _channels(model) == 3:
        operator = task.operator_for(coloured)
    if operator.measurement_shape == coloured:
        return y.expand(-1, 3, -1, -1), operator, True
    return y, operator, is_grey


def _channels(model: DenoiserLike) -> int | None:
    """Channels of the images that a model takes; None where it takes several numbers of them."""
    shape = getattr(model, "image_shape", None)
    return None if shape is None else int(shape[0])


def _noise_level(
    stated: float | str, task: Task, picture: Picture, y: Tensor, operator: LinearOperator
) -> float | Tensor:
    if isinstance(stated, str):
        if stated != "estimate":
            raise ConfigError(f"sigma_y is a number or 'estimate', got {stated!r}")
        return estimate_noise(y, operator)
    if not stated >= 0 or stated == float("inf"):
        raise ConfigError(f"sigma_y is a standard deviation, at least 0 and finite, got {stated}")
    return stated if task.is_exact else max(stated, rounding(picture.bits))


def rounding(bits: int) -> float:
    """What a file of so many bits rounds away, as a standard deviation in pixel units."""
    return float(2 / (2**bits - 1) / 12**0.5)


def _record(task: Task, request: Request, restoration: Restoration, seconds: float) -> dict[str, Any]:
    return {
        "operator": dict(task.description),
        "model": dict(request.model_facts),
        "method": request.method,
        "n_samples": request.n_samples,
        "seed": request.seed,
        "sigma_y": round(float(restoration.sigma_y[0]), 6),
        "residual": [round(float(r), 6) for r in restoration.residual.reshape(-1)],
        "nfe": restoration.nfe,
        "doubts": list(restoration.doubts),
        "seconds": round(seconds, 2),
        "version": __version__,
    }


def degrade_picture(picture: Picture, task: Task, sigma_y: float, seed: int) -> Picture:
    """A measurement of a clean picture, as a picture. Raises `ShapeError` where that is no picture."""
    shape = task.measured_shape(tuple(picture.image.shape[1:]))  # type: ignore[arg-type]
    if min(shape) < 1:
        raise ShapeError(f"a picture of {tuple(picture.image.shape[2:])} pixels is too small for this")
    operator = task.operator_for(shape)
    _, height, width = operator.image_shape
    noise = randn(operator.measurement_shape, generators(seed, "degrade", [0]))
    y = Measurement.of(picture.image[..., :height, :width], operator, sigma_y, noise).y
    if y.ndim != 4 or y.shape[1] not in (1, 3):
        raise ShapeError(f"measurements of '{operator.kind}' are {tuple(y.shape[1:])}, which is no picture")
    return picture.with_image(y)
