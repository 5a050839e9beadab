"""The registry of models in the MLflow store: versions, the aliases on them, and the history of champions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from components.tracking.client import MlflowRun, start_run
from components.tracking.store import connect, service_errors, tracking_uri
from invfusion.errors import ConfigError

if TYPE_CHECKING:
    from components.params import Params


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
    """What makes a registered model: its code, its checkpoint folders, what it takes, and an example of that.

    main: which of the checkpoints restores; sampler: all settings of the one that draws with it.
    """

    code: Path
    library: Path
    checkpoints: Mapping[str, Path]
    main: str
    sampler: Mapping[str, Any]
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
        self._client = connect(self._uri)

    def find(self, checkpoint: str) -> Version | None:
        """The newest version made of this checkpoint whose files are still in place."""
        query = f"name = '{self.name}' and tags.checkpoint = '{checkpoint}'"
        with service_errors(self._uri):
            found = self._client.search_model_versions(query, order_by=["version_number DESC"])
            return next((_version(v) for v in found if self._has_files(v)), None)

    def holder(self, alias: str) -> Version | None:
        """The version that carries an alias."""
        from mlflow.exceptions import MlflowException

        with service_errors(self._uri):
            try:
                number = self._client.get_registered_model(self.name).aliases.get(alias)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            return _version(self._client.get_model_version(self.name, number)) if number else None

    def add(
        self, package: Package, tags: Mapping[str, str], metrics: Mapping[str, float], files: Sequence[Path] = ()
    ) -> Version:
        """Log the model in a run of its own, with files, and register it; its tags arrive together with the version."""
        import mlflow

        with start_run(self._params, "register", self.name) as run, service_errors(self._uri):
            assert isinstance(run, MlflowRun)
            mlflow.set_tracking_uri(self._uri)
            mlflow.set_registry_uri(self._uri)
            run.log_metrics(metrics)
            for file in files:
                run.log_artifact(file)
            with mlflow.start_run(run_id=run.run_id, log_system_metrics=False):
                info = _log_package(package, self.name)
                mlflow.log_metrics(dict(metrics), model_id=info.model_id)
            made = mlflow.register_model(info.model_uri, self.name, tags=dict(tags))
        return Version(str(made.version), dict(tags))

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Store facts with a version."""
        with service_errors(self._uri):
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, version.number, name, value)

    def present(self, version: Version, page: str) -> None:
        """What the version's own page says; {version}, {run} and {experiment} in it are filled in."""
        with service_errors(self._uri):
            found = self._client.get_model_version(self.name, version.number)
            experiment = self._client.get_run(found.run_id).info.experiment_id if found.run_id else ""
            for word, value in {"version": version.number, "run": found.run_id, "experiment": experiment}.items():
                page = page.replace(f"{{{word}}}", str(value))
            self._client.update_model_version(self.name, version.number, page)

    def give(self, alias: str, version: Version) -> None:
        """Move an alias to a version; the version "" takes it away."""
        with service_errors(self._uri):
            if version.number:
                self._client.set_registered_model_alias(self.name, alias, version.number)
            else:
                self._client.delete_registered_model_alias(self.name, alias)

    def version(self, number: str) -> Version:
        """One version with its facts. Raises `ConfigError` where there is none of that number."""
        from mlflow.exceptions import MlflowException

        with service_errors(self._uri):
            try:
                return _version(self._client.get_model_version(self.name, number))
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        raise ConfigError(f"models:/{self.name} has no version {number}")

    def describe(self, text: str, log: str) -> None:
        """What the model's page says, and that of its history."""
        with service_errors(self._uri):
            self._client.update_registered_model(self.name, text)
            self._client.update_registered_model(self._history, log)

    def append(self, change: Change) -> Change:
        """Write a change into the history; the store gives it the next number."""
        facts = {key: str(value) for key, value in asdict(change).items() if key != "number"}
        with service_errors(self._uri):
            self._create_history()
            source = f"models:/{self.name}/{change.after or change.before}"
            text = f"{change.before or 'none'} → {change.after or 'none'}: {change.why}"
            made = self._client.create_model_version(self._history, source, tags=facts, description=text)
        return replace(change, number=int(made.version))

    def close(self, change: Change, outcome: str) -> None:
        """Note how a change ended."""
        with service_errors(self._uri):
            self._client.set_model_version_tag(self._history, str(change.number), "outcome", outcome)

    def history(self) -> list[Change]:
        """All changes, oldest first."""
        with service_errors(self._uri):
            found = self._client.search_model_versions(f"name = '{self._history}'", max_results=10_000)
        return sorted((_change(version) for version in found), key=lambda change: change.number)

    @property
    def _history(self) -> str:
        return f"{self.name}-history"

    def _create_history(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._history)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _has_files(self, version: Any) -> bool:
        location = self._client.get_model_version_download_uri(self.name, version.version)
        folder = _folder(location)
        return folder is None or (folder / "MLmodel").exists()


def _folder(location: str) -> Path | None:
    """The folder of this machine that an address names, be it a path or a file URI; None for a server's."""
    if location.startswith("file:"):
        return Path(url2pathname(urlsplit(location).path))
    return Path(location) if location.startswith("/") else None


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
        model_config={"parameters": dict(package.parameters), "main": package.main, "sampler": dict(package.sampler)},
    )


def _signature(package: Package) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    types: dict[str, Any] = {
        "string": DataType.string,
        "binary": DataType.binary,
        "double": DataType.double,
        "long": DataType.long,
        "array<double>": Array(DataType.double),
        "array<long>": Array(DataType.long),
    }
    names = {str: "string", int: "long", float: "double"}
    return ModelSignature(
        inputs=Schema([ColSpec(types[kind], name, required=required) for name, kind, required in package.columns]),
        params=ParamSchema([ParamSpec(key, names[type(value)], value) for key, value in package.parameters.items()]),
    )
