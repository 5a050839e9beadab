"""Forms for the Prefect UI: the project's own pydantic config, in which every field may be left empty.

An empty field keeps the value of params.yaml; a filled one is written there, where DVC sees it.
"""

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from ruamel.yaml import YAML

from components.params import load_params
from invfusion.errors import ConfigError

LOCK = Path("state/params.lock")


def changes_of(model: type[BaseModel]) -> type[BaseModel]:
    """A model of the same fields and checks, each optional; sections in it are treated alike."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = changes_of(kind)
        elif field.metadata:
            kind = Annotated[(kind, *field.metadata)]
        if field.discriminator:
            kind = Annotated[kind, Field(discriminator=field.discriminator)]
        fields[name] = (kind | None, Field(None, alias=field.alias, description=field.description))
    doc = f"{model.__doc__ or ''}\n\nWhat is left empty stays as params.yaml says."
    config = ConfigDict(extra="forbid", protected_namespaces=())
    return create_model(f"{model.__name__}Changes", __config__=config, __doc__=doc, **fields)


def filled(form: BaseModel) -> dict[str, Any]:
    """What was filled in, as nested mappings."""
    content: dict[str, Any] = form.model_dump(mode="json", exclude_none=True, by_alias=True)
    return _without_empty(content)


def _without_empty(content: Mapping[str, Any]) -> dict[str, Any]:
    pruned = {key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    return {key: value for key, value in pruned.items() if value != {}}


@contextlib.contextmanager
def applied(changes: Mapping[str, Any], params: Path) -> Iterator[None]:
    """Within the block the parameters have these values and nobody else changes them.

    Raises:
        ConfigError: the result is not valid, or other jobs of this working copy use the parameters now; the file is
            untouched.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fresh = _with_changes(params, changes)
        if fresh is not None:
            _exclude_others(lock)
            _write_valid(params, fresh)
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _exclude_others(lock: io.TextIOWrapper) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            "params.yaml cannot be changed: other jobs of this working copy use it now. Wait for them, leave the form "
            "empty, or use a working copy of its own for each experiment"
        ) from None


def _with_changes(path: Path, changes: Mapping[str, Any]) -> str | None:
    """The text of the parameters with the changes in it; None where they change nothing."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    values = yaml.load(path.read_text())
    if not _merge(values, changes):
        return None
    text = io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def _merge(values: Any, changes: Mapping[str, Any]) -> bool:
    """Put the changes into the values, in place; whether anything differs now."""
    differs = False
    for key, change in changes.items():
        old = values.get(key)
        # Members of a union are replaced as a whole.
        if isinstance(change, Mapping) and isinstance(old, Mapping) and "kind" not in change:
            differs |= _merge(old, change)
        elif old != change:
            values[key] = change
            differs = True
    return differs


def _write_valid(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    try:
        load_params(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
