"""A picture, and how it was measured, as a request states it; the HTTP service and the registered model share it."""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import ConfigError, DataError, InvFusionError, ShapeError
from invfusion.restoration import tasks
from invfusion.restoration.pictures import Picture, encoded, read_kernel, read_mask, read_picture
from invfusion.schema import Config


@dataclass(frozen=True)
class Bounds:
    """What one request may ask for: pixels as restored, draws, and no method of these."""

    max_pixels: int = 4_000_000
    max_samples: int = 8
    too_slow: tuple[str, ...] = ()


class TooLargeError(InvFusionError):
    """More than the service is set up for."""


class Options(Config):
    """How the picture was measured and how to restore it; `invfusion restore` has the same options.

    mask: base64 of a picture, white is missing; blur: base64 of a kernel's picture, or blur_sigma: the deviation in
    pixels of a Gaussian kernel; scale: the factor of a reduction. None of them: noise alone.
    """

    mask: str | None = None
    blur: str | None = None
    blur_sigma: float | None = Field(default=None, gt=0, le=20)
    boundary: Literal["valid", "reflect", "replicate", "circular", "constant"] = "valid"
    scale: int | None = Field(default=None, ge=1, le=16)
    filter: Literal["bicubic", "area", "lanczos", "nearest"] = "bicubic"
    sigma: float | Literal["estimate"] = 0.0
    method: str = "sample"
    samples: int = Field(default=1, ge=1)
    seed: int = 0

    def task(self) -> tasks.Task:
        """What these options state. Raises `InvFusionError`."""
        stated = [name for name in ("mask", "blur", "blur_sigma", "scale") if getattr(self, name) is not None]
        if len(stated) > 1:
            raise ShapeError(f"state one of mask, blur, blur_sigma and scale, not {' and '.join(stated)}")
        if self.mask is not None:
            return tasks.inpainting(read_mask(decoded(self.mask, "mask"), "the mask"))
        if self.blur is not None:
            return tasks.deblurring(read_kernel(decoded(self.blur, "blur"), "the kernel"), self.boundary)
        if self.blur_sigma is not None:
            return tasks.deblurring(gaussian_kernel(self.blur_sigma), self.boundary)
        return tasks.denoising() if self.scale is None else tasks.enlarging(self.scale, self.filter)


class PictureRequest(Options):
    """A picture, base64 of its file, with the options."""

    picture: str


def answer(
    content: bytes,
    options: Options,
    model: DenoiserLike,
    facts: Mapping[str, str],
    bounds: Bounds,
    device: str = "cpu",
) -> tasks.Restored:
    """Restore the picture in these bytes. Raises `TooLargeError`, and `InvFusionError` where the request is wrong."""
    picture, task = read_picture(content, "the picture"), options.task()
    _check_bounds(picture, task, options, bounds)
    request = tasks.Request(
        model=model,
        model_facts=facts,
        sigma_y=options.sigma,
        method=options.method,
        n_samples=options.samples,
        seed=options.seed,
        progress=False,
        device=device,
    )
    return tasks.restore_picture(picture, task, request)


def _check_bounds(picture: Picture, task: tasks.Task, options: Options, bounds: Bounds) -> None:
    if options.method in bounds.too_slow:
        raise ConfigError(f"the method '{options.method}' takes too long to be offered here; choose another")
    pixels = math.prod(task.restored_sides(tuple(picture.image.shape[1:])))  # type: ignore[arg-type]
    if pixels > bounds.max_pixels:
        raise TooLargeError(f"{pixels} pixels, as restored, are more than the {bounds.max_pixels} allowed here")
    if options.samples > bounds.max_samples:
        raise TooLargeError(f"{options.samples} samples are more than the {bounds.max_samples} allowed here")


def decoded(text: str, name: str) -> bytes:
    """The bytes of base64 text, with or without the head of a data URL. Raises `DataError`."""
    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"'{name}' must be base64 of a picture's file") from None
    if not content:
        raise DataError(f"'{name}' is empty")
    return content


def as_json(restored: tasks.Restored) -> dict[str, Any]:
    """picture: the restored one; samples; std: standard deviations, white being `std_white`; all base64 PNG; record."""
    answer: dict[str, Any] = {
        "picture": _base64(restored.mean),
        "samples": [_base64(sample) for sample in restored.samples],
        "std": None,
        "std_white": None,
        "record": restored.record,
    }
    if restored.std is not None:
        spread = restored.std.mean(1, keepdim=True)
        white = max(float(spread.max()), 1e-12)
        answer["std"] = _base64(Picture(spread / white * 2 - 1))
        answer["std_white"] = white
    return answer


def _base64(picture: Picture) -> str:
    return base64.b64encode(encoded(picture)).decode()


def gaussian_kernel(sigma: float) -> torch.Tensor:
    """A Gaussian blur kernel (n, n) that sums to one, cut off at three deviations."""
    reach = max(1, round(3 * sigma))
    line = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()
