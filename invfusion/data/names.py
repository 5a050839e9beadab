"""Names in folders, zips and tars, whatever system wrote them, and the keys that are made of them."""

import re
import unicodedata

from invfusion.data.manifest import Split

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# What operating systems leave beside files, without a leading dot.
_LITTER = ("__macosx", "thumbs.db", "desktop.ini")


def readable(name: str) -> str:
    """A name that can be printed and stored: bytes that are no text, and control characters, become %XX."""
    name = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)
    return re.sub("[\0-\x1f\x7f-\x9f\ud800-\udfff]", lambda control: f"%{ord(control[0]):02X}", name)


def parts_of(name: str) -> tuple[str, ...]:
    """A name's folders and its file. Backslashes separate too (zips made on Windows), and letters are composed (NFC),
    so that a name gives one key on every system.
    """
    plain = unicodedata.normalize("NFC", readable(name)).replace("\\", "/")
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def leaves_its_folder(name: str) -> bool:
    """Whether the name is absolute or climbs by `..`, on this system or another."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or bool(re.match(r"[A-Za-z]:/", plain)) or ".." in plain.split("/")


def is_hidden(parts: tuple[str, ...]) -> bool:
    """Hidden files, and what operating systems leave beside others."""
    return any(part.startswith(".") or part.casefold() in _LITTER for part in parts)


def key_of(parts: tuple[str, ...]) -> str:
    """The path without its suffix, safe as a name in a tar: WebDataset ends a key at the name's first dot, and takes a
    first part between double underscores for its own notes.
    """
    *folders, file = parts
    stem = re.sub(r"(?<=.)\.[^.]*$", "", file).replace(".", "%2E")
    key = "/".join([*folders, stem])
    return f"%5F{key[1:]}" if re.match(r"__[^/]*__($|/)", key) else key


def split_of_name(name: str) -> Split | None:
    """The split that a folder is named by."""
    return SPLIT_NAMES.get(unicodedata.normalize("NFKC", name).strip().casefold())


def split_words(name: str) -> dict[Split, str]:
    """The splits that a name speaks of somewhere (`train2017`, `testA`, `imagenet-val-003`), each with what remains of
    the name without that word and numbers.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    found = {split: word for word in words if (split := split_of_name(word))}
    return {split: re.sub(r"\d+", "", name.replace(word, "*", 1)) for split, word in found.items()}
