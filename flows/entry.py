"""What every command line of flows shares: checks before any work, clear errors, a clean end on signals."""

import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import urlopen

from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from components import cli
from components.params import Params, load_params
from components.tracking import masked
from flows import leases
from flows.pages import shown
from invfusion.errors import InvFusionError, ServiceError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SERVER_TIMEOUT_S = 5
# Names the file to which every finished step adds a line {"stage", "seconds"}.
TIMINGS = "INVFUSION_TIMINGS"
# Set where a Prefect run exists already that this process works for: it then opens none of its own.
JOB = "INVFUSION_JOB"
# The steps that this process has finished.
_done: list[str] = []


def run_recorded(flow: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Run a flow; where its work is done and Prefect merely cannot be told of it any more, that is a warning."""
    try:
        flow(**arguments)
    except Exception as error:
        if isinstance(error, InvFusionError) or not _done:
            raise
        log.warning("the work is done, but Prefect could not be told: %s", error)


def step(
    component: Callable[..., Result], params: str, *arguments: str, devices: Callable[[Params], int] | None = None
) -> Result:
    """The body of a flow: the component on the validated parameters, with its time noted.

    `devices` says how many GPUs it needs; it waits for them where others hold them.
    """
    settings = load_params(params)
    stage = os.environ.get("DVC_STAGE", component.__name__)
    with contextlib.ExitStack() as stack:
        stack.enter_context(shown(own_run()))
        if devices is not None:
            stack.enter_context(leases.hold(devices(settings), stage))
        start = time.monotonic()
        result = component(settings, *arguments)
    _done.append(stage)
    if file := os.environ.get(TIMINGS):
        entry = {"stage": stage, "seconds": time.monotonic() - start}
        with Path(file).open("a") as timings:
            timings.write(json.dumps(entry) + "\n")
    return result


def own_run() -> str | None:
    """The Prefect run of this process, where a server keeps its page; a job's page is the job's to fill."""
    return flow_run.get_id() if PREFECT_API_URL.value() and not os.environ.get(JOB) else None


@contextlib.contextmanager
def clear_ends() -> Iterator[None]:
    """Within the block log lines reach the console, a deliberate error becomes one line and exit code 1, and a signal
    ends the process in order: Prefect then records a crashed run instead of one that runs for ever.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger().handlers[0].addFilter(_is_no_deliberate_error)
    for noisy in ("httpx", "alembic", "prefect"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Set even where a shell started us with SIGINT ignored, as shells do for what runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with cli.one_line_errors():
            yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _is_no_deliberate_error(record: logging.LogRecord) -> bool:
    """Prefect logs a flow's error with its traceback; a deliberate one is told in one line at the end."""
    return record.exc_info is None or not isinstance(record.exc_info[1], InvFusionError)


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
            f"no Prefect server answers at PREFECT_API_URL={masked(url)} ({error}); start it with "
            "`prefect server start`, or unset the variable to run without one"
        ) from None
