"""Rerun whatever is stale, end to end: what `make repro` runs, and a flow for the Prefect UI.

DVC decides what to run. Where no Prefect server is configured, one temporary server serves all stages and ends with
them.
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from flows import entry

entry.prepare_environment()

from prefect import flow  # noqa: E402

from components import tracking  # noqa: E402
from invfusion.config import Params, load_params  # noqa: E402
from invfusion.errors import ConfigError, InvFusionError, ServiceError  # noqa: E402

log = logging.getLogger(__name__)

PARAMS = Path("params.yaml")
PROFILES = Path("profiles")
SERVER_START_S = 90
STOP_S = 20


@flow(name="reproduce")
def reproduce(targets: list[str] | None = None, force: bool = False) -> None:
    """Rerun the stale stages (all of them with `force`), or only `targets` and what they need."""
    code = run_dvc(targets or [], force)
    if code:
        raise ServiceError(
            f"dvc repro stopped with exit code {code}; the failing stage's message stands in the log above"
        )


def run_dvc(targets: list[str], force: bool = False) -> int:
    """`dvc repro --pull`, its output passed through; returns its exit code."""
    command = [sys.executable, "-m", "dvc", "repro", "--pull", *(["--force"] if force else []), *targets]
    # Its own session, so that whatever ends this process ends the running stage too, and no orphan trains on.
    with subprocess.Popen(command, env=_stage_environment(), start_new_session=True) as dvc:
        try:
            return dvc.wait()
        except BaseException:
            _stop(dvc)
            raise


def _stage_environment() -> dict[str, str]:
    """The stages say `python`: it must be this one."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def use_profile(name: str) -> None:
    """Put a profile in place of params.yaml.

    Raises:
        ConfigError: there is no such profile, or it is not valid; params.yaml is untouched.
    """
    source = PROFILES / f"{name}.yaml"
    if not source.exists():
        raise ConfigError(
            f"unknown profile '{name}'; there are {', '.join(sorted(p.stem for p in PROFILES.glob('*.yaml')))}"
        )
    load_params(source)
    if source.read_bytes() != PARAMS.read_bytes():
        shutil.copyfile(source, PARAMS)
        log.info("params.yaml is now the profile '%s'", name)


def is_up_to_date(targets: list[str]) -> bool:
    """Whether DVC has nothing to run, and the registry that DVC does not track is there."""
    answer = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", *targets], capture_output=True, text=True, check=False
    )
    return answer.returncode == 0 and json.loads(answer.stdout or "{}") == {}


@contextlib.contextmanager
def prefect_server() -> Iterator[None]:
    """One Prefect server on the loopback interface for the length of the block, unless one is configured."""
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait_for(server, url)
        os.environ["PREFECT_API_URL"] = url
        yield
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        _stop(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(server: "subprocess.Popen[bytes]", url: str) -> None:
    end = time.monotonic() + SERVER_START_S
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(URLError, OSError), urlopen(f"{url}/health", timeout=1):
            return
        time.sleep(0.2)
    raise ServiceError(
        "the temporary Prefect server did not start; run `prefect server start` to see why, "
        "or set PREFECT_API_URL to a server of yours"
    )


def _stop(leader: "subprocess.Popen[bytes]") -> None:
    """End a process and all of its group; a training stage writes its checkpoint first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(STOP_S)
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def _summary(params: Params, seconds: float) -> str:
    name = params.register_.name
    return (
        f"\nDone in {seconds / 60:.1f} min.\n"
        f"  report            {Path('reports/index.html').absolute()}\n"
        f"  numbers           {Path('reports/evaluation.json').absolute()}\n"
        f"  registered model  models:/{name}@champion (or @challenger, see reports/registration.json)\n"
        f"  MLflow store      {tracking.tracking_uri(params)}\n"
        f"  UIs               `make ui` opens MLflow and Prefect on this machine"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="", help="a name under profiles/, to put in place of params.yaml first")
    parser.add_argument("--force", action="store_true", help="run all stages, stale or not")
    parser.add_argument("targets", nargs="*", help="stages; default: all")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    start = time.monotonic()
    try:
        if arguments.profile:
            use_profile(arguments.profile)
        params = load_params(PARAMS)
        tracking.check_reachable(params)
        entry.check_prefect()
        if not arguments.force and is_up_to_date(arguments.targets):
            log.info("Everything is up to date: nothing to do.")
        else:
            with prefect_server():
                code = run_dvc(arguments.targets, arguments.force)
            if code:
                return code
    except InvFusionError as error:
        sys.exit(f"error: {error}")
    log.info(_summary(params, time.monotonic() - start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
