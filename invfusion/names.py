"""Members by name, where an unknown name is refused with the nearest one."""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from invfusion.errors import ConfigError

T = TypeVar("T")
M = TypeVar("M")


class Registry(dict[str, T]):
    """A dict whose `registry[name]` raises `ConfigError` with the nearest name; noun: what its members are."""

    def __init__(self, noun: str, members: Mapping[str, T] | Iterable[tuple[str, T]] = ()) -> None:
        super().__init__(members)
        self.noun = noun

    def register(self, member: M) -> M:
        """Add a class under its `kind`; usable as a decorator. Raises `ConfigError` where the kind is taken."""
        kind = kind_of(member)
        other: Any = self.get(kind, member)
        if _origin(other) != _origin(member):
            raise ConfigError(f"the {self.noun} '{kind}' of {_origin(member)} is taken by {_origin(other)}: rename it")
        self[kind] = member  # type: ignore[assignment]
        return member

    def __missing__(self, name: str) -> NoReturn:
        raise ConfigError(unknown(self.noun, name, self))


def kind_of(member: Any) -> str:
    """The `kind` of a class or an object, or the default of its configuration's field `kind`."""
    fields = getattr(member if isinstance(member, type) else type(member), "model_fields", {})
    kind = fields["kind"].default if "kind" in fields else getattr(member, "kind", None)
    if not isinstance(kind, str) or not kind:
        raise ConfigError(f"{_origin(member)} needs a `kind`, the name that it is registered under")
    return kind


def _origin(member: Any) -> str:
    return f"{getattr(member, '__module__', '?')}.{getattr(member, '__qualname__', member)}"


def unknown(noun: str, name: object, known: Iterable[str]) -> str:
    """The message that refuses a name: with the nearest of the known ones, or with all of them."""
    valid = list(known)
    near = _closest(str(name), valid)
    hint = "" if near is None else f"did you mean '{near}'?{_odd(str(name), near)} "
    return f"unknown {noun} '{str(name)[:80]}': {hint}valid are {', '.join(valid)}"


def nearest(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest of the known ones, or else all of them."""
    valid = list(known)
    near = _closest(wrong, valid)
    return f"; valid are {', '.join(valid)}" if near is None else f"; did you mean '{near}'?{_odd(wrong, near)}"


def _odd(wrong: str, near: str) -> str:
    """What a reader cannot see: letters of other scripts that look alike, and spaces without width."""
    odd = dict.fromkeys(c for c in wrong if not c.isascii() and c not in near)
    names = [unicodedata.name(c, f"U+{ord(c):04X}") for c in odd]
    return f" It holds {', '.join(names)}." if names else ""


def _closest(wrong: str, valid: Iterable[str]) -> str | None:
    by_letters = {name.lower(): name for name in valid}
    close = difflib.get_close_matches(wrong.lower(), by_letters, n=1, cutoff=0.5)
    return by_letters[close[0]] if close else None
