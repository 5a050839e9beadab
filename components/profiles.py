"""Experiments by name: profiles/base.yaml, and for each the values that differ from it.

`params.yaml` stays the one file that the pipeline reads; `python -m components.profiles ffhq64` prints what it becomes.
"""

import copy
import io
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML

from components import cli
from components.params import Params, pipeline_from, read_text, read_values
from invfusion.errors import ConfigError
from invfusion.names import nearest

Values = TypeVar("Values", bound=MutableMapping[str, Any])

FOLDER = Path(__file__).parents[1] / "profiles"
BASE = "base"
# The one that params.yaml holds in a fresh checkout.
DEFAULT = "digits16"


def profile_names() -> list[str]:
    """All of them."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != BASE)


def load_profile(name: str = DEFAULT) -> Params:
    """The parameters of a profile. Raises `ConfigError` where there is none, or where it is not valid."""
    return pipeline_from(profile_values(name), str(_path(name)))


def profile_values(name: str) -> dict[str, Any]:
    """The values of a profile."""
    return merged(read_values(_path(BASE)), read_values(_path(name)))


def profile_text(name: str) -> str:
    """The file that params.yaml becomes: the base's comments, the profile's values."""
    values, changes = (round_trip().load(read_text(_path(one))) for one in (BASE, name))
    overlay(values, changes)
    values.yaml_set_start_comment(
        f"One experiment, profiles/{name}.yaml over profiles/{BASE}.yaml. Every scientific value of the pipeline\n"
        "stands in this file, which is yours to change; `make repro PROFILE=ffhq64` puts another in its place."
    )
    return written(values)


def edits(values: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The profile that is nearest to some values, and {key: "profile's value -> value"} of what differs."""
    found = {name: differences(profile_values(name), values) for name in profile_names()}
    name = min(found, key=lambda name: len(found[name]))
    return name, found[name]


def lost_edits(values: Mapping[str, Any], name: str) -> dict[str, str]:
    """The edits of some values that are gone once a profile takes their place."""
    _, edited = edits(values)
    changed = differences(profile_values(name), values)
    return {key: change for key, change in edited.items() if key in changed}


def refuse_to_lose(values: Mapping[str, Any], name: str) -> None:
    """Raise `ConfigError` that names the edits of params.yaml which a profile would take the place of, if any."""
    if lost := lost_edits(values, name):
        lines = "\n".join(f"  {key}: {change}" for key, change in lost.items())
        raise ConfigError(
            f"the profile would take the place of values that you have changed in params.yaml:\n{lines}\n"
            "Put them into a file of your own under profiles/ to keep them, or say --discard-edits (make: DISCARD=1)"
        )


def overlay(values: MutableMapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Put changes into nested values, in place; whether anything differs now.

    A section with a `kind` of its own is replaced as a whole, and so is a list.
    """
    differs = False
    for key, change in changes.items():
        old = values.get(key)
        if isinstance(change, Mapping) and isinstance(old, MutableMapping) and "kind" not in change:
            differs |= overlay(old, change)
        elif old != change:
            values[key] = copy.deepcopy(change)
            differs = True
    return differs


def merged(values: Values, changes: Mapping[str, Any]) -> Values:
    """A copy of nested values with changes put into it."""
    result = copy.deepcopy(values)
    overlay(result, changes)
    return result


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """{key with dots: "before -> after"} of all leaves that differ."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    keys = [key for key in {**old, **new} if old.get(key, "absent") != new.get(key, "absent")]
    return {key: f"{old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in keys}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        is_section = isinstance(value, Mapping) and value
        found += _leaves(value, f"{prefix}{key}.") if is_section else [(f"{prefix}{key}", value)]
    return found


def round_trip() -> YAML:
    """A reader and writer that keeps comments, quotes and layout."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def written(values: Any) -> str:
    """What `round_trip` has read, as text."""
    text = io.StringIO()
    round_trip().dump(values, text)
    return text.getvalue()


def _path(name: str) -> Path:
    # By its name alone: what comes from a form names no other file of this machine.
    if name not in {BASE, *profile_names()}:
        raise ConfigError(f"unknown profile '{name}'{nearest(name, profile_names())}")
    return FOLDER / f"{name}.yaml"


def main() -> None:
    command = cli.parser(__doc__, params=False)
    command.add_argument("name", nargs="?", default=DEFAULT)
    with cli.started(command) as options:
        load_profile(options.name)
        sys.stdout.write(profile_text(options.name))


if __name__ == "__main__":
    main()
