"""The application: a picture in, restored pictures out.

GET  /            the page
GET  /health      the process lives; GET /ready: the model is loaded
GET  /limits      what a request may ask for
POST /restore     JSON in and out; pictures are base64 of PNG, TIFF, JPEG, ... files
POST /restore.png the picture's bytes in, the restored PNG out; the options are query parameters

One restoration runs at a time, and a bounded number of requests wait. Whatever is wrong with a request is one sentence
with the status 422; too large is 413, too busy 503, too slow 504.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import Field

from invfusion import __version__
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import DataError, InvFusionError, ShapeError
from invfusion.restoration import tasks
from invfusion.restoration.pictures import Picture, encoded, read_kernel, read_mask, read_picture
from invfusion.schema import Config

PAGE = Path(__file__).with_name("page.html")
MAX_WAITING = 4
# Bytes of base64 text for a byte, and room for the rest of a request.
OVERHEAD = 1.4


@dataclass(frozen=True)
class Limits:
    """What one request may ask for: pixels of its pictures, draws, seconds, and bytes of its body."""

    max_pixels: int = 4_000_000
    max_samples: int = 8
    max_seconds: float = 120.0
    max_bytes: int = 32_000_000


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


@dataclass
class Service:
    """A model and what requests to it share."""

    model: DenoiserLike
    facts: dict[str, str]
    limits: Limits
    worker: ThreadPoolExecutor
    n_inside: int = 0

    def restore(self, content: bytes, options: Options) -> tasks.Restored:
        """In the worker thread."""
        picture = read_picture(content, "the picture")
        self._check_size(picture, options)
        request = tasks.Request(
            model=self.model,
            model_facts=self.facts,
            sigma_y=options.sigma,
            method=options.method,
            n_samples=options.samples,
            seed=options.seed,
            progress=False,
        )
        return tasks.restore_picture(picture, options.task(), request)

    def _check_size(self, picture: Picture, options: Options) -> None:
        pixels = picture.image[0, 0].numel() * (options.scale or 1) ** 2
        if pixels > self.limits.max_pixels:
            raise TooLargeError(
                f"{pixels} pixels, as restored, are more than the {self.limits.max_pixels} allowed here"
            )
        if options.samples > self.limits.max_samples:
            raise TooLargeError(f"{options.samples} samples are more than the {self.limits.max_samples} allowed here")

    async def answer(self, content: bytes, options: Options) -> tasks.Restored:
        """One restoration at a time; others wait their turn, a few of them."""
        if self.n_inside > MAX_WAITING:
            raise BusyError(f"{self.n_inside} requests are waiting already; try again later")
        self.n_inside += 1
        job = asyncio.get_running_loop().run_in_executor(self.worker, self.restore, content, options)
        job.add_done_callback(self._left)
        return await asyncio.wait_for(asyncio.shield(job), self.limits.max_seconds)

    def _left(self, job: "asyncio.Future[tasks.Restored]") -> None:
        self.n_inside -= 1
        if not job.cancelled():
            job.exception()  # one that nobody waits for any more is no news


class BusyError(InvFusionError):
    """Too many requests at once."""


def create_app(model: DenoiserLike, facts: dict[str, str] | None = None, limits: Limits = Limits()) -> FastAPI:
    """The application for a loaded model; facts: its name and hash, for the records."""
    app = FastAPI(title="InvFusion", version=__version__, docs_url=None, redoc_url=None)
    service = Service(model, facts or {}, limits, ThreadPoolExecutor(1))
    _add_guards(app, limits)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "alive", "version": __version__}

    @app.get("/ready")
    def ready() -> dict[str, Any]:
        return {"status": "ready", "model": service.facts, "waiting": service.n_inside}

    @app.get("/limits")
    def allowed() -> dict[str, float]:
        return vars(limits).copy()

    @app.post("/restore")
    async def restore(request: PictureRequest) -> dict[str, Any]:
        restored = await service.answer(decoded(request.picture, "picture"), request)
        return as_json(restored)

    @app.post("/restore.png")
    async def restore_bytes(request: Request, options: Options = Query()) -> Response:  # noqa: B008
        restored = await service.answer(await request.body(), options)
        facts = {"X-Residual": f"{max(restored.record['residual']):.6g}", "X-Record": json.dumps(restored.record)}
        if restored.std is not None:
            facts["X-Spread"] = f"{float(restored.std.mean()):.6g}"
        return Response(encoded(restored.mean), media_type="image/png", headers=facts)

    return app


def _add_guards(app: FastAPI, limits: Limits) -> None:
    """Sizes are checked before a body is read, and errors become sentences."""

    @app.middleware("http")
    async def bounded(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        if request.method != "POST":
            return await proceed(request)
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            return JSONResponse({"error": "a request must state its Content-Length"}, 411)
        if int(length) > limits.max_bytes * OVERHEAD:
            return JSONResponse({"error": f"{length} bytes are more than the {limits.max_bytes} allowed here"}, 413)
        return await proceed(request)

    statuses: dict[type[Exception], int] = {InvFusionError: 422, TooLargeError: 413, BusyError: 503}
    for kind, status in statuses.items():
        app.add_exception_handler(kind, _sentence(status))

    @app.exception_handler(TimeoutError)
    async def slow(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": f"not done after {limits.max_seconds:g} seconds; ask for less"}, 504)


def _sentence(status: int) -> Callable[[Request, Exception], JSONResponse]:
    return lambda _, error: JSONResponse({"error": " ".join(str(error).split())}, status)


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
