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

from components import cli
from components.params import Params, load_params, read_values
from components.tracking import masked
from flows import leases
from flows.identify import FOLDER as IDENTITY
from flows.identify import SHOWN, changed, identity_of, text_of
from flows.stages import GRAPH, STAGES, target
from invfusion.errors import ConfigError, InvFusionError, ServiceError
from invfusion.locks import holder, lock

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Where nothing listens the refusal comes at once, and what cannot be reached has this long to be. A server that took
# the connection is there: on a busy host, or with a backlog after its own restart, it may be silent for minutes.
SERVER_TIMEOUT_S = 30
SILENCES = 6
# Names the file to which every finished step adds a line {"stage", "start", "end"}, of this machine's monotonic clock.
TIMINGS = "INVFUSION_TIMINGS"
# A lock for each step that runs.
RUNNING = Path("state/running")
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
        stack.enter_context(_alone(stage))
        stack.enter_context(unchanged(stage))
        stack.enter_context(_shown())
        if devices is not None:
            stack.enter_context(leases.hold(devices(settings), stage))
        if "DVC_STAGE" in os.environ:
            check_identity(settings, stage)
        start = time.monotonic()
        result = component(settings, *arguments)
    _done.append(stage)
    if file := os.environ.get(TIMINGS):
        entry = {"stage": stage, "start": start, "end": time.monotonic()}
        with Path(file).open("a") as timings:
            timings.write(json.dumps(entry) + "\n")
    return result


@contextlib.contextmanager
def _alone(stage: str) -> Iterator[None]:
    """Jobs of equal parameters share their state: each finds there what the one before it left."""
    held = lock(RUNNING / f"{stage}.lock")
    try:
        held.acquire(blocking=False)
    except TimeoutError:
        log.info("%s waits: process %s is making the same", stage, holder(RUNNING / f"{stage}.lock"))
        held.acquire()
    try:
        yield
    finally:
        held.release()


def check_identity(params: Params, stage: str) -> None:
    """DVC notes the identity of the code that `identify` wrote down when the run began, maybe hours ago: what is about
    to run must be that. A stage of somebody's own has none.

    Raises:
        ConfigError: code or settings of the stage have changed since, or nothing was written down.
    """
    name, member, path = _told(stage)
    if name not in STAGES or (member and member not in params.models) or target(params, name, member) != stage:
        return
    if not path.exists():
        raise ConfigError(f"{path}, which says what '{stage}' depends on, does not exist: run `dvc repro identify`")
    now = json.loads(text_of(identity_of(params, STAGES[name], member)))
    if found := changed(json.loads(path.read_text()), now):
        raise ConfigError(
            f"of '{stage}' there changed after this run had begun: {', '.join(found[:SHOWN])}; DVC must not note its "
            "results as made from what was there then. Run it again (a single stage after `dvc repro identify`): what "
            "is still up to date is not run"
        )


@contextlib.contextmanager
def unchanged(stage: str) -> Iterator[None]:
    """DVC writes down what a stage was made from when it has ended: that must be what it was made from.

    Raises:
        ConfigError: parameters or the identity of the code changed meanwhile. DVC then takes the stage for stale.
    """
    before = basis(stage) if "DVC_STAGE" in os.environ else {}
    yield
    differing = {key: value for key, value in before.items() if basis(stage)[key] != value}
    if differing:
        raise ConfigError(
            f"{', '.join(differing)} changed while '{stage}' ran, so DVC must not note its results as made from what "
            "is there now. Run it again: what it had computed is used where it still fits"
        )


def basis(stage: str) -> dict[str, Any]:
    """What DVC notes of a stage beside data: the parameters that dvc.yaml names, and the identity of its code."""
    name, _, path = _told(stage)
    graph = read_values(STAGES[name].graph if name in STAGES else GRAPH)["stages"].get(name, {})
    values = read_values("params.yaml")
    found = {key: _at(values, key) for key in graph.get("params", ())}
    return found | {str(path): path.read_text() if path.exists() else None}


def _told(stage: str) -> tuple[str, str, Path]:
    """Of DVC's name of a stage, such as distill@mmse: the stage's, the model's, and the file of its identity."""
    name, _, member = stage.rpartition(":")[2].partition("@")
    name = "train" if member else name
    identity = IDENTITY / name / member
    return name, member, identity.with_name(f"{identity.name}.json")


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _shown() -> contextlib.AbstractContextManager[None]:
    """The page of this process's Prefect run, where a server keeps one; a job's page is the job's to fill."""
    if os.environ.get(JOB):
        return contextlib.nullcontext()
    # A job's process needs no Prefect, which takes seconds to import.
    from prefect.runtime import flow_run

    from flows.pages import shown

    return shown(flow_run.get_id() if prefect_url() else None)


def prefect_url() -> str | None:
    """Of the Prefect server that is configured."""
    from prefect.settings import PREFECT_API_URL

    url: str | None = PREFECT_API_URL.value()
    return url


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
        ServiceError: names the address and the remedy: at once where nothing listens, within half a minute where
            nothing can be reached, after three of silence where a server takes the connection.
    """
    url = prefect_url()
    if not url:
        return
    for silence in range(1, SILENCES + 1):
        try:
            urlopen(f"{url.rstrip('/')}/health", timeout=SERVER_TIMEOUT_S).close()
        except TimeoutError:
            log.info("the Prefect server at %s is silent: waiting for it (%d of %d)", masked(url), silence, SILENCES)
        except (OSError, ValueError) as error:
            # A server that asks for a password is there; Prefect itself knows the password.
            if isinstance(error, HTTPError) and error.code in (401, 403):
                return
            raise ServiceError(
                f"no Prefect server answers at PREFECT_API_URL={masked(url)} ({error}); start it with "
                "`prefect server start`, or unset the variable to run without one"
            ) from None
        else:
            return
    raise ServiceError(
        f"the Prefect server at PREFECT_API_URL={masked(url)} takes connections and has not answered for "
        f"{SILENCES * SERVER_TIMEOUT_S} seconds; look into its log or start it anew, or unset the variable to run "
        "without one"
    )
