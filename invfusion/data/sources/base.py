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
    """One image before it is cut to size. `origin` names it in errors; `split` is None where the key's hash decides."""

    key: str
    origin: str
    content: bytes | Image.Image
    label: int | None = None
    split: Split | None = None

    def open(self) -> Image.Image:
        """The decoded image. Raises `DataError` naming the origin where it is none."""
        return self.content if isinstance(self.content, Image.Image) else open_image(self.content, self.origin)


@dataclass(frozen=True)
class Listing:
    """An opened source: its images in a fixed order (never the file system's), and what to say about them.

    `n_images` is None where only reading tells; `class_names[label]` names a label.
    """

    description: str
    licence: str
    images: Iterable[SourceImage]
    n_images: int | None = None
    class_names: tuple[str, ...] = ()


class Source(Protocol):
    """A configuration that can open what it describes."""

    def open(self) -> Listing:
        """Raises `DataError` where there is nothing to read."""
        ...
