"""Forms for the Prefect UI: the project's own pydantic config, in which every field may be left empty.

An empty field keeps the value of params.yaml; a filled one is written there, where DVC sees it.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from components.params import load_params, read_text
from components.profiles import overlay, round_trip, written
from invfusion.errors import ConfigError
from invfusion.files import replacing
from invfusion.locks import locked, shared

LOCK = Path("state/params.lock")


def changes_of(model: type[BaseModel], only: Sequence[str] = ()) -> type[BaseModel]:
    """A model of the same fields and checks, each optional; sections in it are treated alike. only: these fields."""
    fields: dict[str, Any] = {}
    for name in only or model.model_fields:
        field = model.model_fields[name]
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
    fresh = _with_changes(params, changes)
    if fresh is not None:
        with locked(LOCK, wait=False) as is_alone:
            if not is_alone:
                raise ConfigError(
                    "params.yaml cannot be changed: other jobs of this working copy use it now. Wait for them, leave "
                    "the form empty, or use a working copy of its own for each experiment"
                )
            _write_valid(params, fresh)
    with shared(LOCK):
        yield


def _with_changes(path: Path, changes: Mapping[str, Any]) -> str | None:
    """The text of the parameters with the changes in it; None where they change nothing."""
    values = round_trip().load(read_text(path))
    return written(values) if overlay(values, changes) else None


def _write_valid(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)
        load_params(partial)
