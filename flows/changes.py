"""Forms for the Prefect UI: the project's own pydantic config, in which every field may be left empty.

An empty field keeps the value of params.yaml; a filled one holds for the job, in a workspace of its own.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

# A server keeps what is filled in, in its database and its log; an address may hold a password.
SECRET = ("mlflow_uri",)

# What the parameters of jobs mean beside the config.
MEANS = {
    "model": "The model to train; what it needs is brought up to date first.",
    "settings": "Values of this job alone. What is left empty stays as params.yaml says.",
    "keep": "These values and their results come into the working copy.",
    "force": "Run even what is up to date.",
    "profile": "A name under profiles/, in place of params.yaml.",
    "discard_edits": "Even where values that somebody has changed in params.yaml are lost.",
    "targets": "Stages as DVC names them; without any, all.",
    "version": "Of the registered model.",
    "why": "For the history.",
    "who": "The person who decides this.",
    "expect": "The champion whose place is meant; left empty, the one at the time of asking.",
    "anyway": "Even where a gate has failed.",
}


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
        says = field.description or explained(model, name)
        fields[name] = (kind | None, Field(None, alias=field.alias, description=says))
    doc = f"{model.__doc__ or ''}\n\nWhat is left empty stays as params.yaml says."
    config = ConfigDict(extra="forbid", protected_namespaces=())
    return create_model(f"{model.__name__}Changes", __config__=config, __doc__=doc, **fields)


def explained(model: type[BaseModel], name: str) -> str | None:
    """What the docstring of a config, or of one that it extends, says of a field: "name: text", up to the next such
    name or the paragraph's end."""
    fields = "|".join(re.escape(field) for field in model.model_fields)
    text = rf"(?:^|[.;]\s+|\n\s*){re.escape(name)}: (.+?)(?=[.;]?\s+(?:{fields}): |\n\s*\n|\Z)"
    for kind in model.__mro__:
        if found := re.search(text, kind.__doc__ or "", re.DOTALL):
            return " ".join(found[1].split()).removesuffix(".") + "."
    return None


def with_values(schema: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A form's JSON schema, in which each field has a description, which ends with the value that it has now.

    values: of the field `settings`, as in params.yaml.
    """
    schema = copy.deepcopy(schema)
    definitions = schema.get("definitions", {})

    def describe(part: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        for key, field in part.get("properties", {}).items():
            value = values.get(key)
            sections = _sections(field, definitions)
            if isinstance(value, Mapping) and sections:
                describe(sections[0], value)
            elif key in values:
                now = f"Now: {json.dumps(value)}"
                field["description"] = f"{field['description']} {now}" if field.get("description") else now

    parameters = schema.get("properties", {})
    for section in _sections(parameters.get("settings", {}), definitions):
        describe(section, values)
    for name, parameter in parameters.items():
        parameter.setdefault("description", MEANS[name])
    return schema


def _sections(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[Any]:
    """The models that a field may hold; of several, which one it is cannot be told from here."""
    found = [option["$ref"].rpartition("/")[2] for option in field.get("anyOf", [field]) if "$ref" in option]
    return [definitions[name] for name in found] if len(found) == 1 else []


def filled(form: BaseModel) -> dict[str, Any]:
    """What was filled in, as nested mappings."""
    content: dict[str, Any] = form.model_dump(mode="json", exclude_none=True, by_alias=True)
    return _without_empty(content)


def _without_empty(content: Mapping[str, Any]) -> dict[str, Any]:
    pruned = {key: _without_empty(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    return {key: value for key, value in pruned.items() if value != {}}
