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
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse

from invfusion import __version__
from invfusion.diffusion.protocols import DenoiserLike
from invfusion.errors import InvFusionError
from invfusion.restoration import tasks
from invfusion.restoration.pictures import encoded
from invfusion.restoration.requests import Bounds, Options, PictureRequest, TooLargeError, answer, as_json, decoded

PAGE = Path(__file__).with_name("page.html")
MAX_WAITING = 4
# Hundreds of network calls and more, most of them with gradients.
TOO_SLOW = ("aseq_dip", "daps", "dps", "mgps")
# Bytes of base64 text for a byte, and room for the rest of a request.
OVERHEAD = 1.4


@dataclass(frozen=True)
class Limits(Bounds):
    """And the seconds that it may take, and the bytes of its body. One worker serves all."""

    too_slow: tuple[str, ...] = TOO_SLOW
    max_seconds: float = 120.0
    max_bytes: int = 32_000_000


@dataclass
class Service:
    """A model and what requests to it share."""

    model: DenoiserLike
    facts: dict[str, str]
    limits: Limits
    device: str
    worker: ThreadPoolExecutor
    n_inside: int = 0

    def restore(self, content: bytes, options: Options) -> tasks.Restored:
        """In the worker thread."""
        return answer(content, options, self.model, self.facts, self.limits, self.device)

    async def answer(self, content: bytes, options: Options) -> tasks.Restored:
        """One restoration at a time; others wait their turn, a few of them."""
        if self.n_inside > MAX_WAITING:
            raise BusyError(f"{self.n_inside} requests are waiting already; try again later")
        self.n_inside += 1
        work = self.worker.submit(self.restore, content, options)
        job = asyncio.wrap_future(work)
        job.add_done_callback(self._left)
        try:
            return await asyncio.wait_for(asyncio.shield(job), self.limits.max_seconds)
        finally:
            work.cancel()  # what has begun goes on to its end; what nobody waits for any more never begins

    def _left(self, job: "asyncio.Future[tasks.Restored]") -> None:
        self.n_inside -= 1
        if not job.cancelled():
            job.exception()  # one that nobody waits for any more is no news


class BusyError(InvFusionError):
    """Too many requests at once."""


def create_app(
    model: DenoiserLike, facts: dict[str, str] | None = None, limits: Limits = Limits(), device: str = "cpu"
) -> FastAPI:
    """The application for a loaded model; facts: its name and hash, for the records; device: where it works."""
    app = FastAPI(title="InvFusion", version=__version__, docs_url=None, redoc_url=None)
    service = Service(model, facts or {}, limits, device, ThreadPoolExecutor(1))
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
    def allowed() -> dict[str, Any]:
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

    @app.exception_handler(RequestValidationError)
    async def unfit(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        name = [str(part) for part in first["loc"][1:]]
        given = f", got {str(first.get('input'))[:40]!r}" if name else ""
        return JSONResponse({"error": f"{name[0] if name else 'the request'}: {first['msg']}{given}"}, 422)

    @app.exception_handler(TimeoutError)
    async def slow(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"error": f"not done after {limits.max_seconds:g} seconds; ask for less"}, 504)


def _sentence(status: int) -> Callable[[Request, Exception], JSONResponse]:
    return lambda _, error: JSONResponse({"error": " ".join(str(error).split())}, status)
