"""The worker of this host: starts queued runs, one for each device, and marks as crashed what died.

`python -m flows.worker` takes what PREFECT_API_URL queues; `make up` starts one. It starts Prefect's own worker anew
where that dies, and ends with its runs on SIGTERM or Ctrl-C; they write checkpoints first.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
import time
from pathlib import Path

from components.children import child
from flows import entry, leases
from flows.jobs import ROOT, STOP_S
from flows.records import FOLDER, Sweeper, ended

log = logging.getLogger(__name__)

# One run at a time for each device; and short jobs that compute nothing.
POOL, REGISTRY = "gpu", "registry"
POOLS = (POOL, REGISTRY)
# A queue of a pool that is served before its other runs.
FIRST = "registry"
SWEEP_S = 3.0
RESTART_S = 3.0


def main() -> None:
    """Work until asked to stop."""
    with entry.clear_ends():
        entry.check_prefect()
        sweeper = Sweeper(POOLS)
        try:
            while True:
                work(sweeper)
                log.warning("the worker died; starting it again")
                time.sleep(RESTART_S)
        finally:
            wait_for_runs()
            sweep(sweeper, grace=0.0)


def work(sweeper: Sweeper) -> None:
    """Run Prefect's workers, one for each pool, until one ends, looking after runs meanwhile."""
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(child(command(pool), environment(), STOP_S)) for pool in POOLS]
        while all(worker.poll() is None for worker in workers):
            sweep(sweeper)
            time.sleep(SWEEP_S)


def sweep(sweeper: Sweeper, **options: float) -> None:
    """One look after the runs of this host; a server that does not answer is asked again the next time."""
    try:
        sweeper.name_waiting()
        sweeper.sweep(**options)
    except Exception as error:  # noqa: BLE001  Prefect's client has no common base of its errors
        log.debug("no look after runs: %s", error)


def wait_for_runs() -> None:
    """Runs notice that their worker is gone and write checkpoints."""
    end = time.monotonic() + STOP_S + 5
    while len(list(FOLDER.glob("*"))) > len(list(ended())) and time.monotonic() < end:
        time.sleep(0.2)


def command(pool: str) -> list[str]:
    """Prefect's process worker for a pool, with one run at a time for each device of this host."""
    limit = max(len(leases.slots()), 1) if pool == POOL else 1
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
    name = f"{socket.gethostname()}-{pool}-{os.getpid()}"
    return [*worker, "--name", name, "--limit", str(limit), "--install-policy", "never"]


def environment() -> dict[str, str]:
    """What the worker's runs inherit: this working copy, this Python, and devices to lease even without GPUs."""
    root = Path.cwd()
    paths = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")])),
        ROOT: str(root),
        leases.SLOTS: ",".join(leases.slots() or ([] if leases.is_scheduled() else ["0"])),
    }
    return {"PREFECT_WORKER_QUERY_SECONDS": "2", **os.environ, **paths}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
