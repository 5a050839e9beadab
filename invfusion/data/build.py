"""Any source to a dataset folder: shards at one resolution, and their manifest."""

import contextlib
import hashlib
import shutil
import tempfile
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import Field

from invfusion.data.images import Resize, UnreadableImageError, crops, fit, naming, to_png, to_rgb
from invfusion.data.manifest import MANIFEST, SPLITS, Manifest, Split, read_manifest, write_manifest
from invfusion.data.shards import Sample, ShardSetWriter
from invfusion.data.sources.base import Listing, Skipped, SourceImage
from invfusion.errors import DataError
from invfusion.rng import generator
from invfusion.schema import Config


class BuildConfig(Config):
    """What the shards shall be. `workers` threads decode and resize; they do not change the result.

    crops: so many squares of each image, at its own resolution; 0: its central square, resized.
    """

    name: str
    image_size: int = Field(ge=1)
    resize: Resize = "bicubic"
    crops: int = Field(default=0, ge=0)
    on_error: Literal["fail", "skip"] = "fail"
    shard_images: int = Field(default=1000, ge=1)
    workers: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Rendered:
    """An image at its final size."""

    image: SourceImage
    png: bytes
    was_enlarged: bool
    has_profile: bool


@dataclass
class Account:
    """Where every entry of a source went: `n_read` into images, the others are skipped, by reason.

    `problems` names those of the skipped that no rule leaves out; `origins` has the origin of each key.
    """

    n_read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    n_enlarged: int = 0
    n_profiles: int = 0

    @property
    def n_skipped(self) -> int:
        """How many entries gave no image."""
        return self.skipped.total()

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
        skipped = f"{self.n_skipped} skipped" + (f" ({reasons})" if reasons else "")
        return f"{self.n_read + self.n_skipped} entries: {self.n_read} read, {skipped}"


def split_of(key: str) -> Split:
    """80% train, 10% val, 10% test by a hash of the key: the same on every machine, whatever else is in the dataset."""
    part = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "train" if part < 8 else "val" if part == 8 else "test"


def build_dataset(
    listing: Listing, output: Path, config: BuildConfig, on_image: Callable[[], object] = lambda: None
) -> tuple[Manifest, Account]:
    """Write a dataset folder; returns its manifest and what became of every entry of the source.

    The folder appears when it is complete, in place of an earlier dataset there; links are followed.

    Raises:
        DataError: an image cannot be read (unless `on_error` is "skip"), two images have one key, nothing is left,
            or `output` holds something other than a dataset.
    """
    try:
        output = output.resolve()
        _check_output(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(output) as scratch:
            (scratch / "new").mkdir()
            built = _write(listing, scratch / "new", config, on_image)
            _replace_folder(scratch / "new", output, scratch / "earlier")
    except (OSError, RuntimeError) as error:  # the latter: links in a circle
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{output} could not be written: {reason}") from error
    return built


def scratch_folders(output: Path) -> list[Path]:
    """What builds into `output` that were killed (or run now) have beside it."""
    output = output.resolve()
    return sorted(
        path for path in output.parent.glob(".*.building-*") if path.name.startswith(f".{output.name}.building-")
    )


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder beside `output`, of a name that nothing has; what is in it is ours."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.building-", dir=output.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    listing: Listing, folder: Path, config: BuildConfig, on_image: Callable[[], object]
) -> tuple[Manifest, Account]:
    account = Account()
    with ShardSetWriter(folder, config.shard_images) as writer:
        for rendered in _render_all(listing.images, config):
            for item in rendered:
                _write_one(item, writer, account, config)
            on_image()
    if not account.origins:
        raise DataError(f"{listing.description} gave no image ({account}); nothing was written")
    manifest = _manifest(listing, writer, account, config)
    write_manifest(manifest, folder)
    return manifest, account


def _write_one(item: Rendered | Skipped, writer: ShardSetWriter, account: Account, config: BuildConfig) -> None:
    if isinstance(item, Rendered) and item.image.key in account.origins:
        item = _twice(item.image, account.origins[item.image.key])
    if isinstance(item, Skipped):
        if item.problem and config.on_error == "fail":
            raise DataError(f"{item.problem}; repair or remove it, or leave such files out with --on-error skip")
        account.skipped[item.reason] += item.n_entries
        account.problems += [item.problem] if item.problem else []
        return
    image = item.image
    account.origins[image.key] = image.origin
    account.n_read += image.n_entries
    account.n_enlarged += item.was_enlarged
    account.n_profiles += item.has_profile
    writer.write(image.split or split_of(image.key), Sample(image.key, item.png, image.label))


def _twice(image: SourceImage, first: str) -> Skipped:
    problem = f"{first} and {image.origin} have one key '{image.key}': rename one of them"
    return Skipped("a key that another image has", problem, image.n_entries)


def _render_all(
    images: Iterable[SourceImage | Skipped], config: BuildConfig
) -> Iterator[list[Rendered] | list[Skipped]]:
    """What each image gives, in parallel, in the order of the source, holding only a few images at a time."""
    pending: deque[Future[list[Rendered] | list[Skipped]]] = deque()
    # Pillow warns of damage that it gets over, without a file's name; not within the threads, who share the filters.
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(config.workers) as pool:
        for image in images:
            pending.append(pool.submit(_render, image, config))
            if len(pending) > 4 * config.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _render(image: SourceImage | Skipped, config: BuildConfig) -> list[Rendered] | list[Skipped]:
    if isinstance(image, Skipped):
        return [image]
    try:
        with naming(image.origin):
            opened = image.open()
            has_profile = "icc_profile" in opened.info
            rgb = to_rgb(opened, image.origin)
            parts = _parts(image, rgb, config)
            return [Rendered(p, to_png(square), min(rgb.size) < config.image_size, has_profile) for p, square in parts]
    except UnreadableImageError as error:
        return [Skipped(error.reason, str(error), image.n_entries)]


def _parts(image: SourceImage, rgb: Image.Image, config: BuildConfig) -> list[tuple[SourceImage, Image.Image]]:
    """The squares of one image, each as an image of its own; all in one split, for what they show is much the same."""
    if not config.crops:
        return [(image, fit(rgb, config.image_size, config.resize))]
    squares = crops(rgb, config.image_size, config.crops, generator(0, "crops", image.key))
    first = replace(image, split=image.split or split_of(image.key))
    return [
        (replace(first, key=f"{image.key}-{i:04d}", n_entries=0 if i else image.n_entries), square)
        for i, square in enumerate(squares)
    ]


def _manifest(listing: Listing, writer: ShardSetWriter, account: Account, config: BuildConfig) -> Manifest:
    shards = writer.entries()
    return Manifest(
        name=config.name,
        image_size=config.image_size,
        n_samples={split: sum(shard.n_samples for shard in shards if shard.split == split) for split in SPLITS},
        class_names=list(listing.class_names),
        source=listing.description,
        licence=listing.licence,
        resize=f"none: {config.crops} squares of each at its own resolution" if config.crops else config.resize,
        n_skipped=account.n_skipped,
        n_enlarged=account.n_enlarged,
        shards=shards,
    )


def _check_output(output: Path) -> None:
    """Only an earlier dataset or an empty folder may be replaced."""
    is_replaceable = not output.exists() or (output.is_dir() and (not any(output.iterdir()) or _is_dataset(output)))
    if not is_replaceable:
        raise DataError(f"{output} exists and is not a dataset: choose another --out, or remove it")
    if output.is_mount():
        raise DataError(f"{output} is the root of a disk and cannot be replaced: choose a folder on it as --out")


def _is_dataset(folder: Path) -> bool:
    """Whether all that the folder holds is a manifest and the shards that it lists."""
    try:
        listed = {entry.file for entry in read_manifest(folder).shards}
    except DataError:
        return False
    return all(path.is_file() and path.name in {MANIFEST, *listed} for path in folder.iterdir())


def _replace_folder(new: Path, place: Path, earlier: Path) -> None:
    """Put a finished dataset into its place; where that cannot be done any more, keep it beside."""
    try:
        _check_output(place)  # hours may have passed
        if place.exists():
            place.rename(earlier)
        new.rename(place)
    except (DataError, OSError) as error:
        if earlier.exists():
            earlier.rename(place)
        kept = tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent)
        new.rename(kept)
        raise DataError(f"{error}; the new dataset is complete and lies in {kept}") from error
