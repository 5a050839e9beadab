"""Members by name, where an unknown name is refused with the nearest one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import NoReturn, TypeVar

from invfusion.errors import ConfigError

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict whose `registry[name]` raises `ConfigError` with the nearest name; noun: what its members are."""

    def __init__(self, noun: str, members: Mapping[str, T] | Iterable[tuple[str, T]] = ()) -> None:
        super().__init__(members)
        self.noun = noun

    def __missing__(self, name: str) -> NoReturn:
        raise ConfigError(unknown(self.noun, name, self))


def unknown(noun: str, name: object, known: Iterable[str]) -> str:
    """The message that refuses a name: with the nearest of the known ones, or with all of them."""
    valid = list(known)
    near = difflib.get_close_matches(str(name).lower(), {k.lower(): k for k in valid}, n=1)
    hint = f"did you mean '{next(k for k in valid if k.lower() == near[0])}'? " if near else ""
    return f"unknown {noun} '{str(name)[:80]}': {hint}valid are {', '.join(valid)}"
