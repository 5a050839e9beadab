"""A stage's run in MLflow.

Once a run is open, nothing here stops the stage: what cannot be delivered waits in `state/tracking/<run>/` and is
delivered later, by this run or the next one.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.tracking.delivery import Entry, deliver
from components.tracking.journal import Journal
from components.tracking.provenance import git_revision, package_versions
from components.tracking.store import connect, experiment_id, keeps_records, masked, now, service_errors, tracking_uri
from invfusion.files import write_text

if TYPE_CHECKING:
    from components.params import Params

log = logging.getLogger(__name__)

STATE = Path("state/tracking")
# Where the pages of an MLflow store are shown that is no server itself.
PAGES = "INVFUSION_MLFLOW_PAGES"
# The page of the job that a run belongs to.
JOB_PAGE = "INVFUSION_JOB_PAGE"
RUN_LINE = "MLflow run %s: %s"
# The parameters that runs of a stage are compared by; all of them are in the run's file params.json.
SECTIONS = {
    "train": ("seed", "data", "degradation", "model", "train"),
    "evaluate": ("seed", "data", "evaluate"),
    "register": ("seed", "data", "degradation", "model", "register"),
}
# After a failed delivery the run does not try again for this long, so that a dead server does not slow training down.
RETRY_SECONDS = 60.0


class Run:
    """Where a stage sends its results. This base class ignores them: the other ranks of a distributed run use it."""

    def log_metrics(self, metrics: Mapping[str, float], nimg: int = 0) -> None:
        """Numbers at a count of training images."""

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Settings; nested mappings become dotted names."""

    def log_image(self, name: str, image: Path | np.ndarray, nimg: int = 0) -> None:
        """A PNG file, or an array (H, W, 3) uint8, at a count of training images."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, stored under `folder`."""

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Which data was used: its name, the sha256 of its content, and where it lies."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Short facts by which runs are searched."""


@contextlib.contextmanager
def start_run(params: "Params", stage: str, name: str) -> Iterator[Run]:
    """Open the MLflow run of one stage and close it at the end, whatever happens in between.

    A run that did not finish is continued by the next call with the same stage, name and parameters, so that training
    that was killed and started again shows as one curve. Ranks above 0 receive a sink that ignores everything.

    Raises:
        ServiceError: the store cannot be reached now. Later failures are kept in the journal.
    """
    if not keeps_records():
        yield Run()
        return
    run = _open_run(params, stage, name)
    try:
        yield run
    except BaseException as error:
        run.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.close("FINISHED")


class MlflowRun(Run):
    """A run in the MLflow store. No method raises for a store that went away."""

    def __init__(self, client: Any, uri: str, run_id: str, live: Path) -> None:
        self.run_id = run_id
        self._client, self._uri, self._live = client, uri, live
        self._journal = Journal(self.folder)
        self._retry_at = 0.0

    def log_metrics(self, metrics: Mapping[str, float], nimg: int = 0) -> None:
        rows = [[name, float(value), nimg] for name, value in metrics.items()]
        self._send("metrics", rows=rows, timestamp=now())

    def log_params(self, values: Mapping[str, Any]) -> None:
        self._send("params", rows=[[name, str(value)] for name, value in _flatten(values)])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._send("tags", rows=[[name, value] for name, value in tags.items()])

    def log_image(self, name: str, image: Path | np.ndarray, nimg: int = 0) -> None:
        try:
            path = image if isinstance(image, Path) else _write_image(self.folder / f"{name}-{nimg}.png", image)
        except OSError as error:
            log.warning("the picture '%s' was not logged: %s", name, error)
            return
        self._send("image", path=str(path), name=name, nimg=nimg, timestamp=now())

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._send("artifact", path=str(path), folder=folder)

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        self._send("dataset", name=name, digest=digest, source=source)
        self.log_tags({"data.digest": digest})

    def close(self, status: str) -> None:
        """Set the final status and deliver what had to wait."""
        self._retry_at = 0.0
        self._send("status", status=status, timestamp=now())
        if status == "FINISHED":
            self._live.unlink(missing_ok=True)
        if self._journal.is_empty():
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where results wait until they are delivered."""
        return STATE / self.run_id

    def _send(self, kind: str, **content: Any) -> None:
        entry = {"kind": kind, "run": self.run_id, "uri": self._uri, **content}
        if time.monotonic() >= self._retry_at:
            # What waits goes first, so that everything arrives in the order in which it arose.
            if self._journal.synchronise(self._uri, self._deliver) and self._deliver(entry):
                return
            log.warning("MLflow at %s does not answer; results wait in %s", self._uri, self._journal.path)
            self._retry_at = time.monotonic() + RETRY_SECONDS
        self._journal.append(_keep_file(entry, self.folder))

    def _deliver(self, entry: Entry) -> bool:
        return deliver(self._client, entry)


def _open_run(params: "Params", stage: str, name: str) -> MlflowRun:
    uri = tracking_uri(params)
    client = connect(uri)
    # What stands in files and messages shows no password.
    address = masked(uri)
    _synchronise_all(client, address)
    settings = params.model_dump(mode="json", by_alias=True, exclude={"runtime"})
    live = STATE / f"{stage}-{name}.json"
    facts = {"uri": address, "params": _sha256(json.dumps(settings, sort_keys=True))}
    with service_errors(uri):
        run_id = _unfinished(client, live, facts) or _create_run(client, uri, params.data.name, stage, name)
        log.info(RUN_LINE, _run_name(stage, name), _page(client, uri, run_id))
    write_text(live, json.dumps({**facts, "run": run_id}))
    run = MlflowRun(client, address, run_id, live)
    run.log_params({section: settings[section] for section in SECTIONS.get(stage, settings) if section in settings})
    write_text(run.folder / "params.json", json.dumps(settings, indent=1))
    run.log_artifact(run.folder / "params.json")
    run.log_tags({f"version.{package}": version for package, version in package_versions().items()})
    return run


def _synchronise_all(client: Any, address: str) -> None:
    """Deliver what other runs had to leave behind."""
    unfinished = set()
    for note in STATE.glob("*.json"):
        # A run beside this one may end in between.
        with contextlib.suppress(FileNotFoundError):
            unfinished.add(json.loads(note.read_text())["run"])
    for path in STATE.glob("*/journal.jsonl"):
        is_empty = Journal(path.parent).synchronise(address, lambda entry: deliver(client, entry))
        if is_empty and path.parent.name not in unfinished:
            shutil.rmtree(path.parent, ignore_errors=True)


def _create_run(client: Any, uri: str, experiment: str, stage: str, name: str) -> str:
    tags = {"mlflow.source.git.commit": git_revision(), "mlflow.source.name": f"components/{stage}.py", "stage": stage}
    if job := os.environ.get(JOB_PAGE):
        tags["job"] = job
    run = client.create_run(experiment_id(client, uri, experiment), tags=tags, run_name=_run_name(stage, name))
    return str(run.info.run_id)


def _run_name(stage: str, name: str) -> str:
    return name if name == stage else f"{stage}-{name}"


def _page(client: Any, uri: str, run_id: str) -> str:
    """Where a run is shown."""
    address = os.environ.get(PAGES) or (masked(uri) if uri.startswith("http") else None)
    if address is None:
        return f"{run_id} in {masked(uri)}"
    experiment = client.get_run(run_id).info.experiment_id
    return f"{address.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def _unfinished(client: Any, live: Path, facts: Mapping[str, str]) -> str | None:
    """The run that an earlier process left open under the same parameters, set to running again."""
    if not live.exists():
        return None
    from mlflow.exceptions import MlflowException

    left = json.loads(live.read_text())
    same = all(left.get(name) == value for name, value in facts.items())
    try:
        client.update_run(left["run"], status="RUNNING" if same else "KILLED")
    except MlflowException:
        return None  # deleted in the meantime
    return str(left["run"]) if same else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value


def _write_image(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _keep_file(entry: Entry, folder: Path) -> Entry:
    """Copy the file of an entry to where it can wait: its owner may delete it before it is delivered."""
    if "path" not in entry or Path(entry["path"]).parent == folder:
        return entry
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {**entry, "path": str(shutil.copy(entry["path"], folder))}
    except OSError as error:
        log.warning("cannot keep %s for later: %s", entry["path"], error)
        return entry
