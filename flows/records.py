"""Which Prefect runs work on this host. Each locks a file of its own under state/jobs for as long as its process lives;
so a file whose lock is free tells of a run that has ended, maybe without telling Prefect.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from filelock import FileLock
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from invfusion.locks import lock, locked

log = logging.getLogger(__name__)

FOLDER = Path("state/jobs")
# How long Prefect may take to note by itself that a run has ended.
GRACE_S = 15.0
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
    """Marks runs that died as crashed where Prefect still counts them as alive, so that their slots are free."""

    seen: dict[str, float] = field(default_factory=dict)

    def sweep(self, grace: float = GRACE_S) -> list[str]:
        """Look once; returns the runs marked. Call it again and again: what ended just now has `grace` seconds."""
        now = time.monotonic()
        found = {run_id: self.seen.get(run_id, now) for run_id in ended()}
        self.seen = found
        return [run_id for run_id, since in found.items() if now - since >= grace and _mark_ended(run_id)]


def _mark_ended(run_id: str) -> bool:
    """Whether the run had to be marked; its file is gone then."""
    was_alive = False
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        state = client.read_flow_run(UUID(run_id)).state
        if state is not None and not state.is_final():
            client.set_flow_run_state(UUID(run_id), Crashed(message=MESSAGE), force=True)
            log.warning("run %s had died and is marked as crashed", run_id)
            was_alive = True
    (FOLDER / run_id).unlink(missing_ok=True)
    return was_alive
