"""Rerun whatever is stale, end to end: what `make repro` runs.

DVC decides what to run. Where no Prefect server is configured, one temporary server serves all stages and ends with
them.
"""

import contextlib
import json
import logging
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException

from components import cli, tracking
from components.children import child
from components.device import check_device
from components.params import Params, load_params, read_values
from components.profiles import load_profile, profile_text, refuse_to_lose
from components.registry.register import SUMMARY
from flows import entry
from flows.dvc_runs import run_dvc, run_graph
from flows.identify import identify
from flows.repair import repair
from flows.servers import comes_up, prefect_api, prefect_command, prefect_environment, prefect_health
from flows.stages import GRAPH, STAGES, target
from flows.workspaces import IDENTIFY, PARAMS, working_copy
from invfusion.data.manifest import RESTORE
from invfusion.errors import DataError, ServiceError

log = logging.getLogger(__name__)

# Where DVC writes down what has run.
LOCKFILE = Path(GRAPH).with_suffix(".lock")
# A busy machine takes minutes.
SERVER_START_S = 300
SERVER_STOP_S = 10


def use_profile(name: str, discard_edits: bool = False) -> None:
    """Put a profile in place of params.yaml.

    Raises:
        ConfigError: there is no such profile, it is not valid, or values of the user's would be lost, unless those are
            to be discarded; params.yaml is untouched.
        DataError: its dataset is neither here nor tracked; params.yaml is untouched.
    """
    check_data(load_profile(name))
    if PARAMS.exists() and not discard_edits:
        refuse_to_lose(read_values(PARAMS), name)
    text = profile_text(name)
    if not PARAMS.exists() or PARAMS.read_bytes() != text.encode():
        PARAMS.write_bytes(text.encode())
        log.info("params.yaml is now the profile '%s'", name)


def check_data(params: Params) -> None:
    """The dataset must be here, or be DVC's to bring.

    Raises:
        DataError: it is neither.
    """
    shards = params.data.shards
    if shards.exists() or is_tracked(shards):
        return
    raise DataError(
        f"{shards} does not exist: {RESTORE}, `python -m components.data.build_dataset` builds one from your images"
    )


def is_tracked(path: Path) -> bool:
    """Whether DVC can bring a file or folder; yes where it cannot tell, since it says why when it tries."""
    try:
        return bool(DVCFileSystem().exists(path.as_posix()))
    except DvcException:
        return True


def checked_params(profile: str, discard_edits: bool = False) -> Params:
    """The parameters, of a profile where one is named, once data and services are known to be there.

    Raises:
        ConfigError, DataError, ServiceError: what is wrong, before anything runs.
    """
    if profile:
        use_profile(profile, discard_edits)
    params = load_params(PARAMS)
    check_device(params)
    check_data(params)
    tracking.check_reachable(params)
    entry.check_prefect()
    return params


# What is to do.


def stale(targets: Sequence[str]) -> set[str] | None:
    """The stages that DVC would run for the targets, or for all; None where it cannot tell. Where nothing has run yet
    it is not asked: `stage` is stale, for which all others wait.

    An edit makes them stale through what `identify` writes, so that comes first; it always runs, which counts for
    nothing here.

    Raises:
        ConfigError: params.yaml or a plug-in is not valid.
    """
    if not (targets or LOCKFILE.exists()):
        return {"stage"}
    identify(load_params(PARAMS))
    found = _status(targets)
    return None if found is None else {name for name in found if name.rpartition(":")[2] != IDENTIFY}


def _status(targets: Sequence[str]) -> set[str] | None:
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", *(targets or [GRAPH])]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if answer.returncode else set(json.loads(answer.stdout or "{}"))


def is_registered(params: Params) -> bool:
    """Whether MLflow, which DVC does not track, holds the model of which the files say that it was registered."""
    checkpoint = registration()["checkpoint"]
    return tracking.Registry(params, params.register_.name).find(checkpoint) is not None


def registration() -> dict[str, Any]:
    """What the stage `register` wrote."""
    content: dict[str, Any] = json.loads(SUMMARY.read_text())
    return content


# Doing it.


def run_stale(params: Params, targets: Sequence[str], force: bool) -> int:
    """Run what is to do, if anything; returns DVC's exit code."""
    repair()
    to_run = None if force else stale(targets)
    if to_run == set() and (targets or is_registered(params)):
        log.info("Everything is up to date: nothing to do.")
        return 0
    with tempfile.TemporaryDirectory() as folder, prefect_server() as environment:
        timings = Path(folder) / "timings.jsonl"
        environment[entry.TIMINGS] = str(timings)
        start, code = time.monotonic(), 0
        if to_run is None:
            code = run_dvc([*(["--force"] if force else []), *targets], environment)
        elif to_run:
            code = run_graph(params, to_run, targets, environment)
        if not (code or targets or is_registered(params)):
            log.info("The model is not in %s: registering it again.", tracking.masked(tracking.tracking_uri(params)))
            code = run_dvc(["--force", "--single-item", "register"], environment)
        if not code:
            log.info("%s", time_table(timings, time.monotonic() - start))
    return code


@contextlib.contextmanager
def prefect_server() -> Iterator[dict[str, str]]:
    """The environment that leads stages to a Prefect server: to the configured one, or to one on the loopback
    interface that lives for the length of the block.
    """
    if entry.prefect_url():
        yield {}
        return
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    command = [*prefect_command("127.0.0.1", port), "--no-services"]
    variables, nowhere = {**os.environ, **prefect_environment(address)}, subprocess.DEVNULL
    with child(command, variables, SERVER_STOP_S, linger=SERVER_STOP_S, stdout=nowhere, stderr=nowhere) as server:
        if not comes_up(server, prefect_health(address), SERVER_START_S):
            raise ServiceError(
                "the temporary Prefect server did not start; run `prefect server start` to see why, "
                "or set PREFECT_API_URL to a server of yours"
            )
        log.info("Prefect shows this run at %s while it lasts.", address)
        yield {"PREFECT_API_URL": prefect_api(address)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Telling of it.


def time_table(timings: Path, total: float) -> str:
    """Each finished stage's own time, and what went into processes, imports, DVC and Prefect around them."""
    entries = [json.loads(line) for line in timings.read_text().splitlines()] if timings.exists() else []
    rows = [(entry["stage"], entry["end"] - entry["start"]) for entry in entries]
    around = total - _covered([(entry["start"], entry["end"]) for entry in entries])
    rows.append((f"around them ({around / total:.0%})", around))
    return "\nTimes:\n" + "\n".join(f"  {name:<22}{_duration(seconds):>9}" for name, seconds in rows)


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """How long at least one of them lasted: stages overlap."""
    covered, until = 0.0, -math.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def summary(params: Params) -> str:
    """Where the results are."""
    alias = "champion" if registration()["passed"] else "challenger"
    note = "" if alias == "champion" else f"   (a gate of promotion failed: see {SUMMARY})"
    return (
        f"\nResults:\n"
        f"  report            {Path('reports/index.html').absolute()}\n"
        f"  numbers           {Path('reports/evaluation.json').absolute()}\n"
        f"  registered model  models:/{params.register_.name}@{alias}{note}\n"
        f"  MLflow store      {tracking.masked(tracking.tracking_uri(params))}\n"
        f"  UIs               `make up` starts MLflow and Prefect on this machine"
    )


def main() -> int:
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("--profile", default="", help="a name under profiles/, to put in place of params.yaml first")
    parser.add_argument("--discard-edits", action="store_true", help="even where values of params.yaml are lost")
    parser.add_argument("--force", action="store_true", help="run all stages, stale or not")
    parser.add_argument("targets", nargs="*", help="stages; default: those of dvc.yaml")
    arguments = parser.parse_args()
    with entry.clear_ends(), working_copy("reproduction"):
        params = checked_params(arguments.profile, arguments.discard_edits)
        targets = [target(params, name) if name in STAGES else name for name in arguments.targets]
        code = run_stale(params, targets, arguments.force)
        if not (code or arguments.targets):
            log.info("%s", summary(params))
    return code


if __name__ == "__main__":
    sys.exit(main())
