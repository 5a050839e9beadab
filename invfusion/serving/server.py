"""The application behind a socket."""

import argparse
import contextlib
import socket
import webbrowser

from invfusion.errors import ConfigError, ServiceError
from invfusion.restoration.models import describe_model, load_model


def serve(options: argparse.Namespace) -> None:
    """Listen until stopped. Raises `ServiceError` where the port is in use or the extra `serve` is missing."""
    try:
        import uvicorn

        from invfusion.serving.app import Limits, create_app
    except ImportError as error:
        raise ServiceError(
            f"serving needs more packages ({error.name}); pip install -e '.[serve]' in invfusion's repository"
        ) from None
    if options.max_megapixels <= 0 or options.max_seconds <= 0:
        raise ConfigError("--max-megapixels and --max-seconds must be positive")
    listener = bound(options.host, options.port)
    model = load_model(options.model, options.device)
    limits = Limits(max_pixels=int(options.max_megapixels * 1e6), max_seconds=options.max_seconds)
    app = create_app(model, describe_model(options.model, model), limits, options.device)
    address = f"http://{options.host}:{listener.getsockname()[1]}/"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    print(f"invfusion: {address} (model '{options.model}'); Ctrl-C ends it", flush=True)  # noqa: T201
    if options.open:
        webbrowser.open(address)
    with listener, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises `ServiceError` where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OverflowError:
        raise ServiceError(f"port {port} does not exist; choose one from 0 to 65535") from None
    except OSError as error:
        raise ServiceError(f"cannot listen at {host}:{port} ({error.strerror}); choose another --port") from error
    return listener
