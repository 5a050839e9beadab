"""A working copy in miniature with its servers and worker, and hands to start, watch and kill what runs there."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
from fault_report import IS_FULL
from test_reproduce import left_behind, make_clone

# Limits are those of a quiet machine, on which `make faults` runs; where all tests run, it is busy, and may be slow.
BUSY_S = 0 if IS_FULL else 900


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float, what: str = "") -> Any:
    limit = max(seconds, BUSY_S)
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {limit:.0f} s: {what}"
        time.sleep(0.2)
    return found


@dataclass
class Site:
    """One host: a working copy, two devices, and the addresses of its servers."""

    folder: Path
    prefect: str = field(default_factory=free_port)
    mlflow: str = field(default_factory=free_port)

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        here = {"PREFECT_HOME": f"{self.folder}/.prefect", "PYTHONPATH": str(self.folder), "PATH": path}
        ports = {"PREFECT_PORT": self.prefect, "MLFLOW_PORT": self.mlflow}
        devices = {"INVFUSION_SLOTS": "0,1", "INVFUSION_LEASES": f"{self.folder}/leases"}
        return os.environ | here | ports | devices | {"OMP_NUM_THREADS": "1"}

    def run(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder, env=self.environment | environment, capture_output=True, text=True, timeout=1800,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    # The Prefect server, spoken to as any client would.

    def api(self, method: str, path: str, **body: Any) -> Any:
        address = f"http://127.0.0.1:{self.prefect}/api{path}"
        request = Request(address, json.dumps(body).encode() if body or method == "POST" else None, method=method)
        request.add_header("content-type", "application/json")
        if method != "GET":
            for name, value in self.token().items():
                request.add_header(name, value)
        for patience in (1, 2, 4, 8, None):
            try:
                with urlopen(request, timeout=max(30, BUSY_S)) as answer:
                    return json.loads(answer.read() or b"null")
            except HTTPError as error:
                # A busy SQLite; Prefect's own clients try again too.
                if error.code != 503 or patience is None:
                    raise
                time.sleep(patience)
        return None

    def token(self) -> dict[str, str]:
        """What shows the server that no web page of another site asks."""
        address = f"http://127.0.0.1:{self.prefect}/api/csrf-token?client=tests"
        with urlopen(address, timeout=max(30, BUSY_S)) as answer:
            return {"prefect-csrf-client": "tests", "prefect-csrf-token": json.loads(answer.read())["token"]}

    def start(self, deployment: str, **parameters: Any) -> str:
        found = self.api("GET", f"/deployments/name/{deployment}/gpu")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.api("POST", f"/deployments/{found['id']}/create_flow_run", **body)["id"])

    def state(self, run: str) -> str:
        return str(self.api("GET", f"/flow_runs/{run}")["state"]["type"])

    def cancel(self, run: str) -> None:
        self.api("POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})

    def end_jobs(self) -> None:
        """Cancel all that has not ended, and end its trainings."""
        unfinished = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "PAUSED"]}}}
        for run in self.api("POST", "/flow_runs/filter", flow_runs=unfinished):
            self.cancel(run["id"])
        for process in self.processes("flows.step", "train"):
            with contextlib.suppress(psutil.Error):
                process.terminate()

    def artifacts(self, run: str) -> dict[str, Any]:
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return {found["key"]: found["data"] for found in self.api("POST", "/artifacts/filter", **wanted)}

    # The processes of the host.

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those of this site whose command line has all the words."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == f"{self.folder}/.prefect" and (
                    set(words) <= set(process.cmdline())
                ):
                    found.append(process)
        return found

    def progress(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(json.loads(self.newest(f"progress/{name}.json").read_text())["done"])
        return 0

    def newest(self, pattern: str) -> Path:
        """Of a job's state, which lies apart where its parameters are others than the working copy's."""
        found = [path for state in ("state", "state/variants/*") for path in self.folder.glob(f"{state}/{pattern}")]
        return max(found, key=lambda path: path.stat().st_mtime, default=self.folder / "state" / pattern)

    def trained(self, name: str) -> int:
        """The image count of the newest checkpoint."""
        newest = self.newest(f"train/{name}/checkpoint-*").name
        return int(newest.split("-")[1]) if newest[-1].isdigit() else 0

    def service(self, name: str) -> psutil.Process:
        return psutil.Process(json.loads((self.folder / f"state/services/{name}.json").read_text())["pid"])

    def up(self) -> str:
        return self.run("-m", "flows.services", "up")

    def down(self) -> None:
        self.run("-m", "flows.services", "down")


@contextlib.contextmanager
def site(folder: Path) -> Iterator[Site]:
    """A site that is up for the length of the block; nothing of it is left afterwards."""
    place = Site(make_clone(folder))
    try:
        place.up()
        yield place
    finally:
        place.down()
        wait_for(lambda: not left_behind(folder), 30, "a process was left behind")


def browse(address: str, picture: Path, height: int = 900) -> str:
    """Open a page in a headless browser, once for its text and once for a picture of it."""
    with_profile = [f"--user-data-dir={picture.parent / 'browser'}", "--headless=new", "--no-sandbox", "--disable-gpu"]
    chromium = ["chromium", *with_profile, "--hide-scrollbars", "--virtual-time-budget=20000"]
    size = [f"--window-size=1300,{height}", f"--screenshot={picture}"]
    subprocess.run([*chromium, *size, address], check=True, capture_output=True, timeout=120)
    return subprocess.run(
        [*chromium, "--dump-dom", address], check=True, capture_output=True, text=True, timeout=120
    ).stdout
