"""What every flow's command line shares: checks before any work, clear errors, a clean end on signals."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

from prefect.settings import PREFECT_API_URL

from invfusion.config import load_params
from invfusion.errors import InvFusionError, ServiceError

Result = TypeVar("Result")

SERVER_TIMEOUT_S = 5
# Names the file to which every finished step adds a line {"stage", "seconds"}.
TIMINGS = "INVFUSION_TIMINGS"


def command_line(
    flow: Callable[..., Any], description: str | None, option: str = "", choices: Sequence[str] = ()
) -> None:
    """Run one flow as a process: the params file, and where a step has variants the choice of one."""
    parser = argparse.ArgumentParser(description=description)
    if option:
        parser.add_argument(f"--{option}", required=True, choices=choices)
    parser.add_argument("--params", default="params.yaml", help="the experiment's parameters (default: %(default)s)")
    arguments = vars(parser.parse_args())
    with clear_ends():
        load_params(arguments["params"])
        check_prefect()
        flow(**arguments)


def step(component: Callable[..., Result], params: str, *arguments: str) -> Result:
    """The body of a flow: the component on the validated parameters, with its time noted."""
    start = time.monotonic()
    result = component(load_params(params), *arguments)
    if file := os.environ.get(TIMINGS):
        entry = {"stage": os.environ.get("DVC_STAGE", component.__name__), "seconds": time.monotonic() - start}
        with Path(file).open("a") as timings:
            timings.write(json.dumps(entry) + "\n")
    return result


@contextlib.contextmanager
def clear_ends() -> Iterator[None]:
    """Within the block log lines reach the console, a deliberate error becomes one line and exit code 1, and a signal
    ends the process in order: Prefect then records a crashed run instead of one that runs for ever.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("httpx", "alembic", "prefect"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Set even where a shell started us with SIGINT ignored, as shells do for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except InvFusionError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def check_prefect() -> None:
    """Where a Prefect server is configured, it must answer.

    Raises:
        ServiceError: names the address and the remedy, within seconds.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return
    try:
        urlopen(f"{url.rstrip('/')}/health", timeout=SERVER_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        # A server that asks for a password is there; Prefect itself knows the password.
        if isinstance(error, HTTPError) and error.code in (401, 403):
            return
        raise ServiceError(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}); start it with `prefect server start`, "
            "or unset the variable to run without one"
        ) from None
