"""Which Prefect runs work on this host. Each locks a file of its own under state/jobs for as long as its process lives;
so a file whose lock is free tells of a run that has ended, maybe without telling Prefect.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psutil
from filelock import FileLock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from flows.names import run_name
from invfusion.locks import lock, locked

log = logging.getLogger(__name__)

FOLDER = Path("state/jobs")
# How long Prefect may take to note by itself that a run has ended.
GRACE_S = 15.0
# How long a worker may take from claiming a run to naming its process.
UNBORN_S = 300.0
MESSAGE = "The run's process died. Starting it again continues from its last checkpoint."

_kept: list[FileLock] = []


def keep(run_id: str) -> None:
    """The run works here until this process ends, however it ends."""
    held = lock(FOLDER / run_id)
    held.acquire()
    _kept.append(held)


def ended() -> Iterator[str]:
    """The runs whose process is gone."""
    for path in sorted(FOLDER.glob("*")):
        with locked(path, wait=False) as is_free:
            if is_free:
                yield path.name


@dataclass
class Sweeper:
    """Marks runs that died as crashed (as cancelled where that was asked for) where Prefect still counts them as alive,
    so that slots are free: those that worked here, and those of the pools that died before they began. It also names
    the runs that wait."""

    pools: Sequence[str] = ()
    seen: dict[str, float] = field(default_factory=dict)
    named: set[UUID] = field(default_factory=set)
    flows: dict[UUID, str] = field(default_factory=dict)

    def sweep(self, grace: float = GRACE_S) -> list[str]:
        """Look once; returns the runs marked. Call it again and again: what ended just now has `grace` seconds."""
        now = time.monotonic()
        found = {run_id: self.seen.get(run_id, now) for run_id in ended()}
        self.seen = found
        dead = [run_id for run_id, since in found.items() if now - since >= grace and _mark_ended(run_id)]
        return dead + (_mark_unborn(self.pools, grace) if self.pools else [])

    def name_waiting(self) -> None:
        """Prefect gives a run its flow's name for it when it begins; until then it would have a random one."""
        with get_client(sync_client=True) as client:
            for run in _runs(client, self.pools, StateType.SCHEDULED):
                if run.id not in self.named:
                    if run.flow_id not in self.flows:
                        self.flows[run.flow_id] = client.read_flow(run.flow_id).name
                    client.update_flow_run(run.id, name=run_name(self.flows[run.flow_id], run.parameters))
                    self.named.add(run.id)


def _runs(client: SyncPrefectClient, pools: Sequence[str], state: StateType) -> list[FlowRun]:
    """The runs of pools in a state."""
    of_state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[state])))
    of_pools = WorkPoolFilter(name=WorkPoolFilterName(any_=list(pools)))
    return client.read_flow_runs(flow_run_filter=of_state, work_pool_filter=of_pools)


def _mark_ended(run_id: str) -> bool:
    """Whether the run had to be marked; its file is gone then."""
    was_alive = False
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        state = client.read_flow_run(UUID(run_id)).state
        # One that was suspended, or waits to be run again, has no process and needs none.
        if state is not None and state.is_cancelling():
            client.set_flow_run_state(UUID(run_id), Cancelled(message="The run's process is gone."), force=True)
            was_alive = True
        elif state is not None and (state.is_running() or state.is_pending()):
            client.set_flow_run_state(UUID(run_id), Crashed(message=MESSAGE), force=True)
            log.warning("run %s had died and is marked as crashed", run_id)
            was_alive = True
    (FOLDER / run_id).unlink(missing_ok=True)
    return was_alive


def _mark_unborn(pools: Sequence[str], grace: float) -> list[str]:
    """The pending runs that will never begin: their process is gone from this host, or their worker from any."""
    marked = []
    with get_client(sync_client=True) as client:
        for run in _runs(client, pools, StateType.PENDING):
            if _is_unborn(run, grace):
                client.set_flow_run_state(
                    run.id, Crashed(message="The run's process died before it began."), force=True
                )
                log.warning("run %s died before it began and is marked as crashed", run.id)
                marked.append(str(run.id))
    return marked


def _is_unborn(run: FlowRun, grace: float) -> bool:
    age = (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else 0.0
    *hosts, number = (run.infrastructure_pid or "").split(":")
    is_gone = not (number.isdigit() and psutil.pid_exists(int(number)))
    if not hosts:  # Prefect says which process, or nothing yet, but not where
        return is_gone and age > UNBORN_S
    return hosts == [socket.gethostname()] and is_gone and age > grace
