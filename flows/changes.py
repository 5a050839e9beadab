"""Forms for the Prefect UI: the project's own pydantic config, in which every field may be left empty.

An empty field keeps the value of params.yaml; a filled one holds for the job, in a workspace of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

# A server keeps what is filled in, in its database and its log; an address may hold a password.
SECRET = ("mlflow_uri",)


def changes_of(model: type[BaseModel], only: Sequence[str] = ()) -> type[BaseModel]:
    """A model of the same fields and checks, each optional; sections in it are treated alike. only: these fields."""
    fields: dict[str, Any] = {}
    for name in only or [name for name in model.model_fields if name not in SECRET]:
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
