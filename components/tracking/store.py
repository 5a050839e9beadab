"""The MLflow store: its address, its experiments, and a client that has seen it answer.

The store is a local SQLite file unless `runtime.mlflow_uri` or the variable MLFLOW_TRACKING_URI (which wins) names
another. One that cannot be reached stops a stage before its work begins.
"""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from invfusion.errors import ConfigError, ServiceError
from invfusion.files import replacing
from invfusion.locks import locked

if TYPE_CHECKING:
    from components.params import Params


def tracking_uri(params: "Params") -> str:
    """The address of the MLflow store: MLFLOW_TRACKING_URI where it is set, else `runtime.mlflow_uri`.

    The path of a SQLite file is made absolute, since MLflow remembers a store by its address.
    """
    return absolute(os.environ.get("MLFLOW_TRACKING_URI") or params.runtime.mlflow_uri)


def absolute(uri: str) -> str:
    """The address of a store, that of a SQLite file from the root of the file system on."""
    database = _database(uri)
    return f"sqlite:///{database}" if database else uri


def masked(uri: str) -> str:
    """An address as it may be shown: without its password."""
    return _without_password(uri, uri)


def check_reachable(params: "Params") -> None:
    """Open the store, creating a local one. Ranks above 0 keep no records, and do not import what does.

    Raises:
        ServiceError: it does not answer within seconds; the message names the address and the remedy.
    """
    if keeps_records():
        connect(tracking_uri(params))


def keeps_records() -> bool:
    """Whether this process is the one of a run's processes that tells MLflow."""
    return int(os.environ.get("RANK", "0")) == 0


def connect(uri: str) -> Any:
    """An MLflow client whose store has answered. A new SQLite file is created under a lock, since MLflow's own
    creation fails when two processes begin together."""
    _quiet_environment()
    with service_errors(uri):
        from mlflow import MlflowClient

        database = _database(uri)
        with _creation_lock(database):
            if database is not None and not database.exists():
                _create(database)
            client = MlflowClient(uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    return client


def _create(database: Path) -> None:
    """Make a new SQLite store under another name first: one that was killed half-made could never be used."""
    from mlflow import MlflowClient

    with replacing(database) as fresh:
        for leftover in database.parent.glob(f"{fresh.name}*"):
            leftover.unlink()
        MlflowClient(f"sqlite:///{fresh}", registry_uri=f"sqlite:///{fresh}").search_experiments(max_results=1)


def _quiet_environment() -> None:
    """No telemetry, nothing unpickled, and a dead server noticed in seconds rather than minutes. What the user has
    set stays.

    A server that is gone refuses at once; one that is merely slow, as in its first requests on a busy machine, is given
    the time.
    """
    defaults = {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextmanager
def service_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow raises for a store that does not answer into one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        remedy = "Start that server"
        if missing := _missing_module(error):
            remedy = f"Install {missing} (PostgreSQL's: pip install -c constraints.txt psycopg2-binary)"
        raise ServiceError(
            f"MLflow at {masked(uri)} cannot be used: {_without_password(_reason(error), uri)}. {remedy}, or unset "
            "MLFLOW_TRACKING_URI and set runtime.mlflow_uri to a local file such as sqlite:///mlflow.db"
        ) from error


def _missing_module(error: BaseException) -> str | None:
    """The driver of a database that is not installed."""
    root = _root(error)
    return root.name if isinstance(root, ModuleNotFoundError) else None


def _root(error: BaseException) -> BaseException:
    while below := error.__cause__ or error.__context__:
        error = below
    return error


def _reason(error: BaseException) -> str:
    """The first line of the error at the bottom: "Connection refused" rather than what each layer made of it."""
    root = _root(error)
    lines = (str(root) or str(error)).splitlines()
    return lines[0][:200] if lines else type(root).__name__


def _without_password(text: str, uri: str) -> str:
    password = urlsplit(uri).password
    return text.replace(f":{password}@", ":***@") if password else text


def _database(uri: str) -> Path | None:
    """The file of a SQLite store, absolute; None for a server."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return None
    path = (project(Path.cwd()) / uri.removeprefix(prefix)).resolve()
    # MLflow decodes even plain paths where it loads a model (LocalArtifactRepository), and SQLAlchemy ends one at '?'.
    if unquote(str(path)) != str(path) or "?" in str(path):
        raise ConfigError(
            f"MLflow cannot keep its files in {path.parent}: it reads '%' before two hexadecimal digits, and '?', as "
            "parts of an address. Rename the folder, or name a database elsewhere in runtime.mlflow_uri"
        )
    return path


def project(folder: Path) -> Path:
    """The working copy to which a folder belongs: experiments of `dvc exp run --temp` and `--queue`, and jobs, run in
    copies below its .dvc/tmp that are thrown away."""
    parts = folder.parts
    inside = [i for i in range(len(parts)) if parts[i : i + 2] == (".dvc", "tmp")]
    return Path(*parts[: inside[0]]) if inside else folder


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment of a dataset. A local one keeps its files in `mlartifacts/` beside the database.

    MLflow stores that path absolutely; after the project has moved, the old experiment is put aside under another name,
    since writing to it would go to the old place.
    """
    database = _database(uri)
    location = (database.parent / "mlartifacts").as_uri() if database else None
    with _creation_lock(database):
        found = client.get_experiment_by_name(name)
        if found and location is None and found.artifact_location.startswith("file:"):
            # Its files lie in a folder of the server's own machine, which others cannot write to.
            name = f"{name} (shared)"
            found = client.get_experiment_by_name(name)
        if found and location in (None, found.artifact_location):
            return str(found.experiment_id)
        if found:
            client.rename_experiment(found.experiment_id, f"{name} (before move {now()})")
        return str(client.create_experiment(name, artifact_location=location))


def _creation_lock(database: Path | None) -> AbstractContextManager[object]:
    """Held against other processes that create the same thing in a local store; a server needs none."""
    return nullcontext() if database is None else locked(database.with_name(f"{database.name}.lock"))


def now() -> int:
    return time.time_ns() // 1_000_000
