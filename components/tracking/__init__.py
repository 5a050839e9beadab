"""Results go to MLflow through this module alone: runs with their metrics, and the registry of models.

The store is a local SQLite file unless `runtime.mlflow_uri` or the variable MLFLOW_TRACKING_URI (which wins) names
another. A store that cannot be reached stops a stage before its work begins. Once a run is open, nothing here stops it:
what cannot be delivered is kept in `state/tracking/journal.jsonl` and delivered later. MLflow is imported inside
functions, since the import takes seconds and most of the pipeline's commands do not need it.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from invfusion.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from components.params import Params

log = logging.getLogger(__name__)

STATE = Path("state/tracking")
PACKAGES = ("torch", "numpy", "scipy", "einops", "pydantic", "safetensors", "mlflow")
# After a failed delivery the run does not try again for this long, so that a dead server does not slow training down.
RETRY_SECONDS = 60.0
# Errors that sending again cannot mend.
_PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED"}

# The pipeline itself rewrites these while it runs; they do not make the code another one.
_NOT_CODE = ("--", ".", ":!dvc.lock", ":!reports")

Entry = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# What a stage uses.


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


def tracking_uri(params: "Params") -> str:
    """The address of the MLflow store: MLFLOW_TRACKING_URI where it is set, else `runtime.mlflow_uri`.

    The path of a SQLite file is made absolute, since MLflow remembers a store by its address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or params.runtime.mlflow_uri
    database = _database(uri)
    return f"sqlite:///{database}" if database else uri


def masked(uri: str) -> str:
    """An address as it may be shown: without its password."""
    return _without_password(uri, uri)


def check_reachable(params: "Params") -> None:
    """Open the store, creating a local one.

    Raises:
        ServiceError: it does not answer within seconds; the message names the address and the remedy.
    """
    _connect(tracking_uri(params))


@contextmanager
def start_run(params: "Params", stage: str, name: str) -> Iterator[Run]:
    """Open the MLflow run of one stage and close it at the end, whatever happens in between.

    A run that did not finish is continued by the next call with the same stage, name and parameters, so that training
    that was killed and started again shows as one curve. Ranks above 0 receive a sink that ignores everything.

    Raises:
        ServiceError: the store cannot be reached now. Later failures are kept in the journal.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield Run()
        return
    run = _open_run(params, stage, name)
    try:
        yield run
    except BaseException as error:
        run.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    run.close("FINISHED")


def git_revision() -> str:
    """The commit of the working tree, with `-dirty` behind it where tracked files differ; "unknown" outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no", *_NOT_CODE) else commit
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


# ---------------------------------------------------------------------------------------------------------------------
# One run.


class MlflowRun(Run):
    """A run in the MLflow store. No method raises for a store that went away."""

    def __init__(self, client: Any, uri: str, run_id: str, live: Path) -> None:
        self.run_id = run_id
        self._client, self._uri, self._live = client, uri, live
        self._journal = Journal(STATE)
        self._retry_at = 0.0

    def log_metrics(self, metrics: Mapping[str, float], nimg: int = 0) -> None:
        rows = [[name, float(value), nimg] for name, value in metrics.items()]
        self._send("metrics", rows=rows, timestamp=_now())

    def log_params(self, values: Mapping[str, Any]) -> None:
        self._send("params", rows=[[name, str(value)] for name, value in _flatten(values)])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self._send("tags", rows=[[name, value] for name, value in tags.items()])

    def log_image(self, name: str, image: Path | np.ndarray, nimg: int = 0) -> None:
        try:
            path = image if isinstance(image, Path) else _write_image(self._folder / f"{name}-{nimg}.png", image)
        except OSError as error:
            log.warning("the picture '%s' was not logged: %s", name, error)
            return
        self._send("image", path=str(path), name=name, nimg=nimg, timestamp=_now())

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._send("artifact", path=str(path), folder=folder)

    def log_dataset(self, name: str, digest: str, source: str) -> None:
        self._send("dataset", name=name, digest=digest, source=source)
        self.log_tags({"data.digest": digest})

    def close(self, status: str) -> None:
        """Set the final status and deliver what had to wait."""
        self._send("status", status=status, timestamp=_now())
        self._journal.resend(self._uri, lambda entry: _deliver(self._client, entry))
        if status == "FINISHED":
            self._live.unlink(missing_ok=True)
        if self._journal.is_empty():
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        """Where pictures wait until they are delivered."""
        return STATE / self.run_id

    def _send(self, kind: str, **content: Any) -> None:
        entry = {"kind": kind, "run": self.run_id, "uri": self._uri, **content}
        if time.monotonic() >= self._retry_at and _deliver(self._client, entry):
            return
        if time.monotonic() >= self._retry_at:
            log.warning("MLflow at %s does not answer; results wait in %s", self._uri, self._journal.path)
            self._retry_at = time.monotonic() + RETRY_SECONDS
        self._journal.append(_keep_file(entry, self._folder))


class Journal:
    """Results that could not be delivered, one JSON object per line, in the order in which they arose.

    Delivering an entry again after a crash in the middle does no harm: MLflow stores a metric with the same name, step,
    time and value once, and an artifact under the same name once.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"

    def append(self, entry: Entry) -> None:
        """Keep one entry; a disk that cannot take it costs this entry and a warning."""
        try:
            with _locked(self.path), self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            log.warning("a result was lost, since neither MLflow nor %s could take it: %s", self.path, error)

    def is_empty(self) -> bool:
        return not self.path.exists()

    def resend(self, uri: str, deliver: Callable[[Entry], bool]) -> None:
        """Deliver the entries of one store in order, until one fails; that one and all behind it stay."""
        if self.is_empty():
            return
        with _locked(self.path):
            entries = [json.loads(line) for line in self.path.read_text().splitlines()]
            waiting = [entry for entry in entries if entry["uri"] != uri]
            mine = [entry for entry in entries if entry["uri"] == uri]
            sent = next((i for i, entry in enumerate(mine) if not deliver(entry)), len(mine))
            self._rewrite(waiting + mine[sent:])
        if sent:
            log.info("delivered %d results to MLflow that had been waiting", sent)

    def _rewrite(self, entries: Sequence[Entry]) -> None:
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        if entries:
            os.replace(fresh, self.path)
        else:
            fresh.unlink()
            self.path.unlink()


def _open_run(params: "Params", stage: str, name: str) -> MlflowRun:
    uri = tracking_uri(params)
    client = _connect(uri)
    # What stands in files and messages shows no password.
    address = masked(uri)
    Journal(STATE).resend(address, lambda entry: _deliver(client, entry))
    settings = params.model_dump(mode="json", by_alias=True, exclude={"runtime"})
    live = STATE / f"{stage}-{name}.json"
    facts = {"uri": address, "params": _sha256(json.dumps(settings, sort_keys=True))}
    with _service_errors(uri):
        run_id = _unfinished(client, live, facts) or _create_run(client, uri, params.data.name, stage, name)
    STATE.mkdir(parents=True, exist_ok=True)
    live.write_text(json.dumps({**facts, "run": run_id}))
    run = MlflowRun(client, address, run_id, live)
    run.log_params(settings)
    run.log_tags({f"version.{package}": version for package, version in package_versions().items()})
    return run


def _create_run(client: Any, uri: str, experiment: str, stage: str, name: str) -> str:
    tags = {"mlflow.source.git.commit": git_revision(), "mlflow.source.name": f"components/{stage}.py", "stage": stage}
    run_name = name if name == stage else f"{stage}-{name}"
    run = client.create_run(_experiment_id(client, uri, experiment), tags=tags, run_name=run_name)
    return str(run.info.run_id)


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


# ---------------------------------------------------------------------------------------------------------------------
# Delivery of one entry.


def _deliver(client: Any, entry: Entry) -> bool:
    """Send one entry. False: try again later. An entry that MLflow refuses for good is dropped with a warning."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        _SENDERS[entry["kind"]](client, entry)
    except MlflowException as error:
        if error.error_code not in _PERMANENT:
            return False
        log.warning("MLflow refused a result (%s): %s", entry["kind"], error)
    except FileNotFoundError as error:
        log.warning("a result was not logged: %s", error)
    except (OSError, SQLAlchemyError):
        return False
    return True


def _send_metrics(client: Any, entry: Entry) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(name, value, entry["timestamp"], step) for name, value, step in entry["rows"]]
    for i in range(0, len(metrics), 1000):
        client.log_batch(entry["run"], metrics=metrics[i : i + 1000])


def _send_params(client: Any, entry: Entry) -> None:
    from mlflow.entities import Param

    rows = [Param(name, value) for name, value in entry["rows"]]
    for i in range(0, len(rows), 100):
        client.log_batch(entry["run"], params=rows[i : i + 100])


def _send_tags(client: Any, entry: Entry) -> None:
    from mlflow.entities import RunTag

    client.log_batch(entry["run"], tags=[RunTag(name, value) for name, value in entry["rows"]])


def _send_image(client: Any, entry: Entry) -> None:
    from PIL import Image

    with Image.open(entry["path"]) as image:
        client.log_image(
            entry["run"], image.convert("RGB"), key=entry["name"], step=entry["nimg"], timestamp=entry["timestamp"]
        )


def _send_artifact(client: Any, entry: Entry) -> None:
    client.log_artifact(entry["run"], entry["path"], entry["folder"])


def _send_dataset(client: Any, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput

    # MLflow keeps 36 characters of a digest; the whole of it is in the tag data.digest.
    dataset = Dataset(entry["name"], entry["digest"][:32], "local", json.dumps({"uri": entry["source"]}))
    client.log_inputs(entry["run"], datasets=[DatasetInput(dataset=dataset)])


def _send_status(client: Any, entry: Entry) -> None:
    client.set_terminated(entry["run"], entry["status"], end_time=entry["timestamp"])


_SENDERS: dict[str, Callable[[Any, Entry], None]] = {
    "metrics": _send_metrics,
    "params": _send_params,
    "tags": _send_tags,
    "image": _send_image,
    "artifact": _send_artifact,
    "dataset": _send_dataset,
    "status": _send_status,
}


# ---------------------------------------------------------------------------------------------------------------------
# The store.


def _connect(uri: str) -> Any:
    """An MLflow client whose store has answered. A new SQLite file is created under a lock, since MLflow's own
    creation fails when two processes begin together."""
    _quiet_environment()
    with _service_errors(uri):
        from mlflow import MlflowClient

        database = _database(uri)
        with _locked(database):
            if database is not None and not database.exists():
                _create(database)
            client = MlflowClient(uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    return client


def _create(database: Path) -> None:
    """Make a new SQLite store under another name first: one that was killed half-made could never be used."""
    from mlflow import MlflowClient

    fresh = database.with_name(f"{database.name}.new")
    for leftover in database.parent.glob(f"{fresh.name}*"):
        leftover.unlink()
    MlflowClient(f"sqlite:///{fresh}", registry_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)
    os.replace(fresh, database)


def _quiet_environment() -> None:
    """No telemetry, and a dead server is noticed in seconds rather than minutes. What the user has set stays."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def _service_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises for a store that does not answer into one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        raise ServiceError(
            f"MLflow at {masked(uri)} cannot be used: {_without_password(_reason(error), uri)}. Start "
            "that server, or unset MLFLOW_TRACKING_URI and set runtime.mlflow_uri to a local file such as "
            "sqlite:///mlflow.db"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of the error at the bottom: "Connection refused" rather than what each layer made of it."""
    root = error
    while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__  # type: ignore[assignment]
    lines = (str(root) or str(error)).splitlines()
    return lines[0][:200] if lines else type(root).__name__


def _without_password(text: str, uri: str) -> str:
    password = urlsplit(uri).password
    return text.replace(f":{password}@", ":***@") if password else text


def _database(uri: str) -> Path | None:
    """The file of a SQLite store, absolute; None for a server."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).resolve() if uri.startswith(prefix) else None


def _experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment of a dataset. A local one keeps its files in `mlartifacts/` beside the database.

    MLflow stores that path absolutely; after the project has moved, the old experiment is put aside under another name,
    since writing to it would go to the old place.
    """
    database = _database(uri)
    location = (database.parent / "mlartifacts").as_uri() if database else None
    with _locked(database):
        found = client.get_experiment_by_name(name)
        if found and location is None and found.artifact_location.startswith("file:"):
            # Its files lie in a folder of the server's own machine, which others cannot write to.
            name = f"{name} (shared)"
            found = client.get_experiment_by_name(name)
        if found and location in (None, found.artifact_location):
            return str(found.experiment_id)
        if found:
            client.rename_experiment(found.experiment_id, f"{name} (before move {_now()})")
        return str(client.create_experiment(name, artifact_location=location))


@contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Hold the lock beside a file against other processes; nothing to hold for None."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------------------
# The registry.


@dataclass(frozen=True)
class Version:
    """One version of the registered model and the facts stored with it."""

    number: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """One entry of the history of champions. before, after: version numbers, "" for none; number: its place."""

    number: int
    action: str
    before: str
    after: str
    who: str
    when: str
    why: str
    outcome: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the alias was moved, or the change refused; a crash may come before."""
        return bool(self.outcome)


@dataclass(frozen=True)
class Package:
    """What makes a registered model: its code, its checkpoint folders, what it takes, and an example of that."""

    code: Path
    library: Path
    checkpoints: Mapping[str, Path]
    columns: Sequence[tuple[str, str, bool]]  # name, MLflow type ("string", "array<double>"), required
    parameters: Mapping[str, Any]
    example: Mapping[str, Any]
    example_parameters: Mapping[str, Any]
    requirements: Sequence[str]


class Registry:
    """The versions of one registered model, and the aliases `challenger` and `champion` on them.

    Every method raises `ServiceError` where the store does not answer.
    """

    def __init__(self, params: "Params", name: str) -> None:
        self.name = name
        self._params = params
        self._uri = tracking_uri(params)
        self._client = _connect(self._uri)

    def find(self, checkpoint: str) -> Version | None:
        """The newest version made of this checkpoint whose files are still in place."""
        query = f"name = '{self.name}' and tags.checkpoint = '{checkpoint}'"
        with _service_errors(self._uri):
            found = self._client.search_model_versions(query, order_by=["version_number DESC"])
            return next((_version(v) for v in found if self._has_files(v)), None)

    def holder(self, alias: str) -> Version | None:
        """The version that carries an alias."""
        from mlflow.exceptions import MlflowException

        with _service_errors(self._uri):
            try:
                number = self._client.get_registered_model(self.name).aliases.get(alias)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            return _version(self._client.get_model_version(self.name, number)) if number else None

    def add(self, package: Package, tags: Mapping[str, str], metrics: Mapping[str, float]) -> Version:
        """Log the model in a run of its own and register it; its tags arrive together with the version."""
        import mlflow

        with start_run(self._params, "register", self.name) as run, _service_errors(self._uri):
            assert isinstance(run, MlflowRun)
            mlflow.set_tracking_uri(self._uri)
            mlflow.set_registry_uri(self._uri)
            run.log_metrics(metrics)
            with mlflow.start_run(run_id=run.run_id, log_system_metrics=False):
                info = _log_package(package, self.name)
                mlflow.log_metrics(dict(metrics), model_id=info.model_id)
            made = mlflow.register_model(info.model_uri, self.name, tags=dict(tags))
        return Version(str(made.version), dict(tags))

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Store facts with a version."""
        with _service_errors(self._uri):
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, version.number, name, value)

    def give(self, alias: str, version: Version) -> None:
        """Move an alias to a version; the version "" takes it away."""
        with _service_errors(self._uri):
            if version.number:
                self._client.set_registered_model_alias(self.name, alias, version.number)
            else:
                self._client.delete_registered_model_alias(self.name, alias)

    def version(self, number: str) -> Version:
        """One version with its facts. Raises `ConfigError` where there is none of that number."""
        from mlflow.exceptions import MlflowException

        with _service_errors(self._uri):
            try:
                return _version(self._client.get_model_version(self.name, number))
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        raise ConfigError(f"models:/{self.name} has no version {number}")

    def describe(self, text: str) -> None:
        """What the model's page says."""
        with _service_errors(self._uri):
            self._client.update_registered_model(self.name, text)

    def append(self, change: Change) -> Change:
        """Write a change into the history; the store gives it the next number."""
        facts = {key: str(value) for key, value in asdict(change).items() if key != "number"}
        with _service_errors(self._uri):
            self._create_history()
            source = f"models:/{self.name}/{change.after or change.before}"
            text = f"{change.before or 'none'} → {change.after or 'none'}: {change.why}"
            made = self._client.create_model_version(self._history, source, tags=facts, description=text)
        return replace(change, number=int(made.version))

    def close(self, change: Change, outcome: str) -> None:
        """Note how a change ended."""
        with _service_errors(self._uri):
            self._client.set_model_version_tag(self._history, str(change.number), "outcome", outcome)

    def history(self) -> list[Change]:
        """All changes, oldest first."""
        with _service_errors(self._uri):
            found = self._client.search_model_versions(f"name = '{self._history}'", max_results=10_000)
        return sorted((_change(version) for version in found), key=lambda change: change.number)

    @property
    def _history(self) -> str:
        return f"{self.name}-history"

    def _create_history(self) -> None:
        from mlflow.exceptions import MlflowException

        text = f"Every change of the champion of '{self.name}', one version each. Nothing here is ever changed."
        try:
            self._client.create_registered_model(self._history, description=text)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _has_files(self, version: Any) -> bool:
        location = self._client.get_model_version_download_uri(self.name, version.version)
        path = urlsplit(location).path if location.startswith(("file:", "/")) else None
        return path is None or (Path(path) / "MLmodel").exists()


def _version(found: Any) -> Version:
    return Version(str(found.version), dict(found.tags))


def _change(found: Any) -> Change:
    names = ("action", "before", "after", "who", "when", "why", "outcome")
    return Change(int(found.version), *(str(found.tags.get(name, "")) for name in names))


def _log_package(package: Package, name: str) -> Any:
    import mlflow
    import pandas as pd  # type: ignore[import-untyped]

    return mlflow.pyfunc.log_model(
        name=name,
        python_model=str(package.code),
        artifacts={key: str(path) for key, path in package.checkpoints.items()},
        code_paths=[str(package.library)],
        signature=_signature(package),
        input_example=(pd.DataFrame([dict(package.example)]), dict(package.example_parameters)),
        pip_requirements=list(package.requirements),
        model_config={"parameters": dict(package.parameters)},
    )


def _signature(package: Package) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    types: dict[str, Any] = {
        "string": DataType.string,
        "array<double>": Array(DataType.double),
        "array<long>": Array(DataType.long),
    }
    names = {str: "string", int: "long", float: "double"}
    return ModelSignature(
        inputs=Schema([ColSpec(types[kind], name, required=required) for name, kind, required in package.columns]),
        params=ParamSchema([ParamSpec(key, names[type(value)], value) for key, value in package.parameters.items()]),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Small helpers.


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _now() -> int:
    return time.time_ns() // 1_000_000


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
