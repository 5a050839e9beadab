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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import UUID

from prefect import Flow, flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, ObjectNotFound, Pause
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel

from components import tracking
from components.children import child
from components.params import Params, load_params
from components.registry import promotion
from flows import entry, records
from flows.changes import changes_of, filled
from flows.dvc_runs import dvc_command, dvc_environment
from flows.names import named
from flows.pages import Timeline, link_of, page_of, shown
from flows.stages import STAGES, Stage, target
from flows.workspaces import PARAMS, Wanted, workspace
from invfusion.errors import ConfigError, ServiceError
from invfusion.training.recipes import RECIPES

# The working copy in which this host's jobs work.
ROOT = "INVFUSION_ROOT"
# Set where this host's files do not last, as in a container: a job then hands its results to the DVC remote, or fails.
PUSHES = "INVFUSION_PUSH"
# From a cancelled run to the end of its processes, in which a stage writes its checkpoint.
STOP_S = 12
# A decision about the champion takes seconds.
DECISION_S = 600
# How often a run looks whether it should be running, and how long it leaves its end to its worker.
LOOK_S = 2.0
# What DVC says where it does not skip a stage.
RUNS = re.compile(r"Running stage '(?:.*:)?([\w@.-]+)'")
STOPPED_S = 4.0


def form_of(*sections: str) -> type[BaseModel]:
    """The form of some sections of params.yaml, of all without any."""
    names = {field.alias or name: name for name, field in Params.model_fields.items()}
    return changes_of(Params, [names[section] for section in sections])


def job_of(stage: Stage) -> Flow[..., Any]:
    """The flow that brings a stage up to date: for a model where the stage trains each, and with its form filled in."""

    def job(settings: BaseModel | None = None, keep: bool = False, force: bool = False, **chosen: str) -> State | None:
        wanted = Wanted(changes={} if settings is None else filled(settings), keeps=keep)
        return run_job(lambda params: [target(params, stage.name, *chosen.values())], wanted, force)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("force", kind, default=False, annotation=bool)]
    if stage.form:
        form: Any = form_of(*stage.form) | None
        parameters.insert(0, inspect.Parameter("keep", kind, default=False, annotation=bool))
        parameters.insert(0, inspect.Parameter("settings", kind, default=None, annotation=form))
    if stage.each:
        parameters.insert(0, inspect.Parameter(stage.each, kind, annotation=Literal[tuple(RECIPES)]))
    job.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # Workers find a flow by its module and its function's name.
    job.__name__ = job.__qualname__ = stage.name
    return flow(name=stage.name, flow_run_name=named(stage.name), description=stage.does)(job)


JOBS = {name: job_of(stage) for name, stage in STAGES.items()}
globals().update(JOBS)

if TYPE_CHECKING:
    ParamsChanges: TypeAlias = BaseModel
else:
    ParamsChanges = form_of()


@flow(name="reproduce", flow_run_name=named("reproduce"))
def reproduce(
    profile: str = "",
    settings: ParamsChanges | None = None,
    keep: bool = False,
    discard_edits: bool = False,
    targets: list[str] | None = None,
    force: bool = False,
) -> State | None:
    """Rerun whatever is stale, end to end, with the values of a profile (a name under profiles/) where one is named.

    keep: parameters and results of a profile or of settings come into the working copy; this is refused where values
    that somebody has changed in params.yaml would be lost, unless `discard_edits`.
    """
    changes = {} if settings is None else filled(settings)
    return run_job(lambda _: targets or [], Wanted(profile, changes, keep, discard_edits), force)


@flow(name="promote", flow_run_name=named("promote"), timeout_seconds=DECISION_S)
def promote(version: int, why: str, who: str = "", expect: int | None = None, anyway: bool = False) -> None:
    """Make a registered version the champion where every gate passes; `anyway` goes against failed gates.

    who: decides this. expect: the present champion; left empty, the one at the time of asking. Where another promotion
    came in between, nothing happens.
    """
    with at_root():
        promotion.promote(load_params(PARAMS), str(version), decision(why, who, expect), anyway)


@flow(name="rollback", flow_run_name=named("rollback"), timeout_seconds=DECISION_S)
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


class StoppedError(Exception):
    """The run is in a state in which nothing should go on, and its worker did not say so."""

    def __init__(self, state: State | None) -> None:
        super().__init__(str(state))
        self.state = state


def run_job(targets_of: Callable[[Params], Sequence[str]], wanted: Wanted, force: bool) -> State | None:
    """Run `dvc repro` under the Prefect run of this process, in a workspace of its own; returns its final state where
    that is "cancelled".

    targets_of: of the parameters, once they are changed.

    Raises:
        InvFusionError: the changes are not valid, or a stage failed.
        SystemExit: the worker is gone. A checkpoint is written then, as when the run is cancelled.
        Pause, Abort: the run was suspended, or has come to another end. Likewise.
    """
    run_id, worker = str(flow_run.get_id()), os.getppid()
    _refuse_to_lose(wanted)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(at_root())
            records.keep(run_id)
            # It drops the job's training states where nothing is raised.
            place = stack.enter_context(workspace(run_id, wanted))
            targets = targets_of(place.params)
            stack.enter_context(shown(run_id, [re.split("[@:]", target)[-1] for target in targets]))
            if code := _follow(dvc_command([*(["--force"] if force else []), *targets]), worker):
                raise ServiceError(
                    f"dvc repro stopped with exit code {code}; the failing stage's message stands in the log"
                )
            if os.environ.get(PUSHES):
                place.push()
            place.keep(wanted)
    except StoppedError as stopped:
        return _end_as(stopped.state)
    return None


def _refuse_to_lose(wanted: Wanted) -> None:
    if os.environ.get(PUSHES) and wanted.keeps:
        raise ConfigError(
            "keep: this host's files do not last, params.yaml with them. Leave it empty: the results go to the DVC "
            "remote, where every working copy with these values finds them"
        )


def _end_as(state: State | None) -> State:
    """The run's final state, or what ends it in the state that it has."""
    if state is not None and state.is_cancelling():
        return Cancelled(message="the run looked for itself and found that it was cancelled")
    if state is not None and state.is_paused():
        raise Pause(state=state)
    raise Abort("the run has come to another end")


@contextlib.contextmanager
def at_root() -> Iterator[None]:
    """Work in this host's working copy."""
    with contextlib.chdir(os.environ.get(ROOT, ".")):
        yield


def _follow(command: Sequence[str], worker: int) -> int:
    """Run a command with its output in the run's log; returns its exit code."""
    quiet = {"TQDM_DISABLE": "1", "PREFECT_LOGGING_EXTRA_LOGGERS": ""}
    # The workspace's own code comes before the working copy's, and with it vanish DVC's notes about its files.
    here = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))}
    here["DVC_SITE_CACHE_DIR"] = str(Path(".dvc/tmp/site").absolute())
    run_id = flow_run.get_id()
    page = {tracking.JOB_PAGE: page_of(run_id)} if run_id else {}
    environment = {**dvc_environment(), **quiet, **here, **page, entry.JOB: "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with Timeline(run_id) as timeline, child(command, environment, STOP_S, **pipes) as process:
        reader = threading.Thread(target=_read, args=(process.stdout, get_run_logger(), timeline), daemon=True)
        reader.start()
        watch = Watch()
        while (code := process.poll()) is None:
            _end_with(worker)
            watch.check()
            time.sleep(0.5)
        reader.join(timeout=5)
        timeline.end(Failed() if code else Completed())
    return code


def _read(stream: Any, log: Any, timeline: Timeline) -> None:
    """Log the lines, and show which stage runs."""
    for line in stream:
        if line.strip():
            log.log(logging.ERROR if line.startswith(("error:", "ERROR:")) else logging.INFO, "%s", line.rstrip())
        if stage := RUNS.match(line):
            timeline.begin(stage[1])
        elif link := link_of(line):
            timeline.link(*link)


@dataclass
class Watch:
    """Looks for itself whether the run should still be running: Prefect's worker does not where somebody suspends it,
    and after an outage of the server it does not even look for cancelled ones any more (its own words: "Flow run
    cancellation disabled").
    """

    next_look: float = 0.0
    first_seen: float | None = None

    def check(self) -> None:
        """Raise `StoppedError` where the run has not been running for a while and nobody has ended it."""
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK_S
        is_running, state = _state()
        if is_running:
            self.first_seen = None
        elif self.first_seen is None:
            self.first_seen = now
        elif now - self.first_seen >= STOPPED_S:
            # A late signal of the worker must not cut the writing of a checkpoint short.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise StoppedError(state)


def _state() -> tuple[bool, State | None]:
    """Whether the run should be running, and its state."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(str(flow_run.get_id()))).state
    except ObjectNotFound:
        return False, None
    except Exception as error:  # noqa: BLE001  a server that does not answer has stopped nothing
        logging.getLogger(__name__).debug("the run's state could not be read: %s", error)
        return True, None
    return state is None or state.is_running() or state.is_pending(), state


def _end_with(worker: int) -> None:
    """Nobody could cancel a run whose worker is gone, or give its slot to another."""
    if os.getppid() != worker:
        get_run_logger().error("the worker that started this run is gone: the run ends, with a checkpoint")
        sys.exit(128 + signal.SIGTERM)
