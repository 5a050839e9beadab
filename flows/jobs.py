"""What the Prefect UI starts: each job runs `dvc repro` on its part of the graph, so that its results are the same
files as anyone else's, and shows log, progress and pictures on its page.

A job ends with the worker that started it: the stage writes its checkpoint, and the next run goes on from there.
"""

import contextlib
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import UUID

from prefect import Flow, flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled
from pydantic import BaseModel

from components.children import child
from components.params import Params, load_params
from components.registry import promotion
from flows import entry, records
from flows.changes import applied, changes_of, filled
from flows.pages import shown
from flows.repair import repair
from flows.reproduce import PARAMS, dvc_command, dvc_environment, stale, use_profile
from flows.stages import STAGES, Stage, target
from invfusion.errors import ServiceError
from invfusion.training.recipes import RECIPES

# The working copy in which this host's jobs work.
ROOT = "INVFUSION_ROOT"
# From a cancelled run to the end of its processes, in which a stage writes its checkpoint.
STOP_S = 12
# DVC refuses a path that another job of this working copy is using.
BUSY = ("is busy", "Unable to acquire lock")
RETRY_S = 10
# How often a run looks whether it was cancelled, and how long it leaves that to its worker.
LOOK_S = 2.0
CANCEL_S = 4.0


def form_of(*sections: str) -> type[BaseModel]:
    """The form of some sections of params.yaml, of all without any."""
    names = {field.alias or name: name for name, field in Params.model_fields.items()}
    return changes_of(Params, [names[section] for section in sections])


def job_of(stage: Stage) -> Flow[..., Any]:
    """The flow that brings a stage up to date: for a model where the stage trains each, and with its form filled in."""

    def job(settings: BaseModel | None = None, force: bool = False, **chosen: str) -> State | None:
        changes = {} if settings is None else filled(settings)
        return run_job(lambda params: [target(params, stage.name, *chosen.values())], changes, force)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("force", kind, default=False, annotation=bool)]
    if stage.form:
        form: Any = form_of(*stage.form) | None
        parameters.insert(0, inspect.Parameter("settings", kind, default=None, annotation=form))
    if stage.each:
        parameters.insert(0, inspect.Parameter(stage.each, kind, annotation=Literal[tuple(RECIPES)]))
    job.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # Workers find a flow by its module and its function's name.
    job.__name__ = job.__qualname__ = stage.name
    name = f"{stage.name}-{{{stage.each}}}" if stage.each else None
    return flow(name=stage.name, flow_run_name=name, description=stage.does)(job)


JOBS = {name: job_of(stage) for name, stage in STAGES.items()}
globals().update(JOBS)

if TYPE_CHECKING:
    ParamsChanges: TypeAlias = BaseModel
else:
    ParamsChanges = form_of()


@flow(name="reproduce")
def reproduce(
    profile: str = "",
    discard_edits: bool = False,
    settings: ParamsChanges | None = None,
    targets: list[str] | None = None,
    force: bool = False,
) -> State | None:
    """Rerun whatever is stale, end to end; `profile` is a name under profiles/ to put in place of params.yaml first,
    which is refused where values that somebody has changed there would be lost, unless `discard_edits`.
    """
    with at_root():
        if profile:
            use_profile(profile, discard_edits)
    return run_job(lambda _: targets or [], {} if settings is None else filled(settings), force)


@flow(name="promote", flow_run_name="promote-{version}")
def promote(version: int, why: str, who: str = "", expect: int | None = None, anyway: bool = False) -> None:
    """Make a registered version the champion where every gate passes; `anyway` goes against failed gates.

    who: decides this. expect: the present champion; left empty, the one at the time of asking. Where another promotion
    came in between, nothing happens.
    """
    with at_root():
        promotion.promote(load_params(PARAMS), str(version), decision(why, who, expect), anyway)


@flow(name="rollback")
def rollback(why: str, who: str = "", expect: int | None = None) -> None:
    """Give the champion's place back to the version that held it before; `who` and `expect` as for promote."""
    with at_root():
        promotion.rollback(load_params(PARAMS), decision(why, who, expect))


def decision(why: str, who: str, expect: int | None) -> promotion.Decision:
    """What was decided by whoever asked for this run, when they asked for it."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(str(flow_run.get_id())))
    asker = who or (run.created_by.display_value if run.created_by else "") or ""
    return promotion.Decision(why, asker, None if expect is None else str(expect), run.created)


class CancelledError(Exception):
    """Somebody asked for the end of this run, and its worker did not pass that on."""


def run_job(targets_of: Callable[[Params], Sequence[str]], changes: Mapping[str, Any], force: bool) -> State | None:
    """Run `dvc repro` under the Prefect run of this process; returns its final state where that is "cancelled".

    targets_of: of the parameters, once they are changed.

    Raises:
        InvFusionError: the changes are not valid, or a stage failed.
        SystemExit: the worker is gone. A checkpoint is written then, as when the run is cancelled.
    """
    run_id, worker = str(flow_run.get_id()), os.getppid()
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_root())
        stack.enter_context(applied(changes, PARAMS))
        targets = targets_of(load_params(PARAMS))
        stack.enter_context(shown(run_id, [re.split("[@:]", target)[-1] for target in targets]))
        records.keep(run_id)
        try:
            code = _repro(targets, ["--force"] if force else [], worker)
        except CancelledError:
            return Cancelled(message="the run looked for itself and found that it was cancelled")
    if code:
        raise ServiceError(f"dvc repro stopped with exit code {code}; the failing stage's message stands in the log")
    return None


@contextlib.contextmanager
def at_root() -> Iterator[None]:
    """Work in this host's working copy."""
    with contextlib.chdir(os.environ.get(ROOT, ".")):
        yield


def _repro(targets: Sequence[str], options: Sequence[str], worker: int) -> int:
    """Run DVC, beside other jobs of this working copy where it can, after them where it must wait for what they make.

    DVC locks all that comes before a target, even what is up to date; so where only the target itself is stale, it is
    run alone.
    """
    while True:
        repair()
        alone = ["--single-item"] if len(targets) == 1 and stale(targets) == set(targets) else []
        code, is_busy = _follow(dvc_command([*options, *alone, *targets]), worker)
        if not (code and is_busy):
            return code
        get_run_logger().info("another job of this working copy is making what this one needs: trying again")
        time.sleep(RETRY_S)


def _follow(command: Sequence[str], worker: int) -> tuple[int, bool]:
    """Run a command with its output in the run's log; returns its exit code, and whether DVC found a path in use."""
    quiet = {"TQDM_DISABLE": "1", "PREFECT_LOGGING_EXTRA_LOGGERS": ""}
    environment = {**dvc_environment(), **quiet, entry.JOB: "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    seen: list[bool] = []
    with child(command, environment, STOP_S, **pipes) as process:
        arguments = (process.stdout, get_run_logger(), seen)
        reader = threading.Thread(target=_log_lines, args=arguments, daemon=True)
        reader.start()
        cancellation = Cancellation()
        while (code := process.poll()) is None:
            _end_with(worker)
            cancellation.check()
            time.sleep(0.5)
        reader.join(timeout=5)
    return code, any(seen)


def _log_lines(stream: Any, log: Any, seen: list[bool]) -> None:
    for line in stream:
        if line.strip():
            log.log(logging.ERROR if line.startswith(("error:", "ERROR:")) else logging.INFO, "%s", line.rstrip())
        seen.append(any(sign in line for sign in BUSY))


@dataclass
class Cancellation:
    """Looks for itself whether the run was cancelled: after an outage of the server, Prefect's worker does not any more
    (its own words: "Flow run cancellation disabled").
    """

    next_look: float = 0.0
    first_seen: float | None = None

    def check(self) -> None:
        """Raise `CancelledError` where the run has been cancelled for a while and nobody has ended it."""
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK_S
        if not _is_cancelling():
            self.first_seen = None
        elif self.first_seen is None:
            self.first_seen = now
        elif now - self.first_seen >= CANCEL_S:
            # A late signal of the worker must not cut the writing of a checkpoint short.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise CancelledError


def _is_cancelling() -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(str(flow_run.get_id()))).state
    except Exception as error:  # noqa: BLE001  a server that does not answer has cancelled nothing
        logging.getLogger(__name__).debug("the run's state could not be read: %s", error)
        return False
    return state is not None and state.is_cancelling()


def _end_with(worker: int) -> None:
    """Nobody could cancel a run whose worker is gone, or give its slot to another."""
    if os.getppid() != worker:
        get_run_logger().error("the worker that started this run is gone: the run ends, with a checkpoint")
        sys.exit(128 + signal.SIGTERM)
