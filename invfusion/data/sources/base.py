"""What every image source hands over."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from invfusion.data.images import open_image
from invfusion.data.manifest import Split

# The licence of images that nobody has described.
NOT_STATED = "not stated"


@dataclass(frozen=True)
class SourceImage:
    """One image before it is cut to size. `origin` names it in errors; `split` is None where the key's hash decides.

    `n_entries` files of the source went into it: the image, and perhaps its class.
    """

    key: str
    origin: str
    content: bytes | Image.Image
    label: int | None = None
    split: Split | None = None
    n_entries: int = 1

    def open(self) -> Image.Image:
        """The decoded image. Raises `DataError` naming the origin where it is none."""
        return self.content if isinstance(self.content, Image.Image) else open_image(self.content, self.origin)


@dataclass(frozen=True)
class Skipped:
    """Entries of a source that give no image, because of `reason` (one of a few, to be counted by).

    `problem` names the entry and what is wrong with it; it is empty where the rules leave such entries out (hidden
    files), which is no reason to stop.
    """

    reason: str
    problem: str = ""
    n_entries: int = 1


@dataclass(frozen=True)
class Listing:
    """An opened source: its images in a fixed order (never the file system's), and what to say about them.

    Every entry of the source is part of one image or `Skipped`, those that are known beforehand first. `n_images` is
    how many of both there are, None where only reading tells; `class_names[label]` names a label; `warnings` are about
    the source as a whole.
    """

    description: str
    licence: str
    images: Iterable[SourceImage | Skipped]
    n_images: int | None = None
    class_names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """A configuration that can open what it describes."""

    def open(self) -> Listing:
        """Raises `DataError` where there is nothing to read, or its layout is not the documented one."""
        ...
