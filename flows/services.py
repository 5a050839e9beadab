"""`make up` and `make down`: Prefect's server, MLflow's, and this host's worker, on the loopback interface.

Each runs in the background with its log and a note of its process under state/services. The note holds the process's
start time too, so that `down` never ends a stranger that was given the same number later. What a service itself started
carries its name in the environment, and is found by that when the service was killed.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from components import cli, tracking
from components.params import Params, load_params
from flows import entry
from flows.servers import answers, comes_up, prefect_api, prefect_command, prefect_environment, prefect_health, stays_up
from invfusion.errors import ServiceError

log = logging.getLogger(__name__)

FOLDER = Path("state/services")
HOST = "INVFUSION_HOST"
# MLflow's configuration of users; where it is named, its server asks for passwords.
PASSWORDS = "MLFLOW_AUTH_CONFIG_PATH"
# The note of the service that a process belongs to.
MARK = "INVFUSION_SERVICE"
START_S = 300
# In which a service without an address would fail.
MOMENT_S = 2
STOP_S = 40


@dataclass(frozen=True)
class Service:
    """What runs in the background. health: an address that answers once it is up; empty for a process without one."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    address: str = ""
    health: str = ""


@dataclass(frozen=True)
class Note:
    """Which process a service is: its number alone may belong to another one later."""

    pid: int
    started: float
    address: str

    def process(self) -> psutil.Process | None:
        """The process, while it lives."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def services(params: Params) -> list[Service]:
    """Those that this working copy needs, in the order in which they start."""
    return [service for make in SERVICES.values() if (service := make(params)) is not None]


def _prefect(_: Params) -> Service:
    at = _address("PREFECT_PORT", "4200")
    host, port = at.removeprefix("http://").rsplit(":", 1)
    environment = {**_client(), **prefect_environment(at), "PREFECT_UI_API_URL": prefect_api(at)}
    return Service("prefect", prefect_command(host, port), environment, at, prefect_health(at))


def _mlflow(params: Params) -> Service | None:
    """A server before a local store; a store that is a server already needs none."""
    store, at = _store(params), _address("MLFLOW_PORT", "5000")
    if store.startswith("http"):
        return None
    host, port = at.removeprefix("http://").rsplit(":", 1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port, "--workers", "1"]
    if PASSWORDS in os.environ:
        command += ["--app-name", "basic-auth"]
    # The store's address may hold a password: a command line is for all to see.
    environment = {
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_ARTIFACTS_DESTINATION": os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", "mlartifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return Service("mlflow", command, environment, at, f"{at}/health")


def _store(params: Params) -> str:
    """What is behind MLflow's server: not that server itself, whose address this host's own jobs may be given."""
    at = _address("MLFLOW_PORT", "5000")
    port = at.rpartition(":")[2]
    own = {at, *(f"http://{host}:{port}" for host in ("127.0.0.1", "localhost", socket.gethostname()))}
    named = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    return tracking.absolute(params.runtime.mlflow_uri) if named in own else tracking.tracking_uri(params)


def _worker(_: Params) -> Service:
    # A store that is a server itself shows its own pages.
    pages = {tracking.PAGES: _address("MLFLOW_PORT", "5000")}
    return Service("worker", [sys.executable, "-m", "flows.worker"], {**_client(), **pages})


# In the order in which they start, and the other way round in which they end: the worker's runs write checkpoints and
# say that they ended.
SERVICES: dict[str, Callable[[Params], Service | None]] = {"prefect": _prefect, "mlflow": _mlflow, "worker": _worker}


def _address(variable: str, default: str) -> str:
    """Ports and host come from the environment: see docs/operations.md."""
    return f"http://{os.environ.get(HOST, '127.0.0.1')}:{os.environ.get(variable, default)}"


def _client() -> dict[str, str]:
    """What lets a process find Prefect's server."""
    return {"PREFECT_API_URL": prefect_api(_address("PREFECT_PORT", "4200"))}


def up(params: Params) -> None:
    """Start what is not running, and register the deployments.

    Raises:
        ServiceError: something did not come up; its log is named. What had been started keeps running.
    """
    tracking.connect(_store(params))
    for service in services(params):
        if (note := read(service.name)) is None or note.process() is None:
            start(service)
        if service.name == "prefect":
            register(service)
    log.info("\n%s", overview())


def down() -> None:
    """End what `up` started."""
    for name in reversed(SERVICES):
        note = read(name)
        if note is not None and (process := note.process()) is not None:
            end(process)
            log.info("%s ended", name)
        end_orphans(name)
        (FOLDER / f"{name}.json").unlink(missing_ok=True)


def overview() -> str:
    """What runs where."""
    lines = []
    for path in sorted(FOLDER.glob("*.json")):
        note = read(path.stem)
        if note is not None:
            state = f"process {note.pid}" if note.process() else "NOT RUNNING; `make up` starts it again"
            lines.append(f"  {path.stem:<9}{note.address:<26}{state}, log {path.with_suffix('.log')}")
    return "\n".join(lines) or "  nothing runs; `make up` starts it"


def start(service: Service) -> None:
    """Start one in the background and wait until it answers."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    end_orphans(service.name)
    check_free(service)
    environment = {**os.environ, **service.environment, MARK: mark(service.name)}
    with (FOLDER / f"{service.name}.log").open("a") as output:
        process = subprocess.Popen(
            service.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    note = Note(process.pid, psutil.Process(process.pid).create_time(), service.address)
    (FOLDER / f"{service.name}.json").write_text(json.dumps(asdict(note)))
    is_up = comes_up(process, service.health, START_S) if service.health else stays_up(process, MOMENT_S)
    if not is_up:
        raise ServiceError(f"{service.name} did not start; {FOLDER / service.name}.log says why")


def check_free(service: Service) -> None:
    """Raise `ServiceError` where somebody else answers at the service's address."""
    if service.health and answers(service.health):
        raise ServiceError(
            f"something that `make up` did not start answers at {service.address}: end it, or choose other ports with "
            "PREFECT_PORT and MLFLOW_PORT"
        )


def register(server: Service) -> None:
    """Register pool and deployments with the server."""
    command = [sys.executable, "-m", "flows.deployments"]
    done = subprocess.run(
        command, env={**os.environ, **server.environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ServiceError(f"the deployments could not be registered: {(done.stderr or done.stdout).strip()[-2000:]}")


def end(process: psutil.Process) -> None:
    """SIGTERM, then SIGKILL for what is left of it and of all that it started."""
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs([process], timeout=STOP_S)
    _, left = psutil.wait_procs(family, timeout=2)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, timeout=5)


def end_orphans(name: str) -> None:
    """Kill what a service that is gone left in its session, such as the workers of a server that was killed itself."""
    note = read(name)
    if note is None or note.process() is not None:
        return
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == note.pid and process.environ().get(MARK) == mark(name):
                log.info("%s was killed; process %d, which it left, is ended", name, process.pid)
                process.kill()
                process.wait(5)


def mark(name: str) -> str:
    """What the processes of a service carry in their environment."""
    return str((FOLDER / f"{name}.json").absolute())


def read(name: str) -> Note | None:
    """The note of a service."""
    try:
        return Note(**json.loads((FOLDER / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def main() -> None:
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("action", choices=("up", "down", "status"))
    action = parser.parse_args().action
    with entry.clear_ends():
        if action == "up":
            up(load_params())
        elif action == "down":
            down()
        else:
            log.info("%s", overview())


if __name__ == "__main__":
    main()
