"""Any source to a dataset folder: shards at one resolution, and their manifest."""

import hashlib
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from invfusion.data.images import Resize, fit, to_png, to_rgb
from invfusion.data.manifest import MANIFEST, SPLITS, Manifest, Split, write_manifest
from invfusion.data.shards import Sample, ShardSetWriter
from invfusion.data.sources.base import Listing, SourceImage
from invfusion.errors import DataError
from invfusion.schema import Config


class BuildConfig(Config):
    """What the shards shall be. `workers` threads decode and resize; they do not change the result."""

    name: str
    image_size: int = Field(ge=1)
    resize: Resize = "bicubic"
    on_error: Literal["fail", "skip"] = "fail"
    shard_images: int = Field(default=1000, ge=1)
    workers: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Rendered:
    """An image at its final size, or the reason why there is none."""

    image: SourceImage
    png: bytes = b""
    was_enlarged: bool = False
    problem: str = ""


@dataclass
class Tally:
    """What happened on the way."""

    origins: dict[str, str] = field(default_factory=dict)
    n_enlarged: int = 0
    problems: list[str] = field(default_factory=list)


def split_of(key: str) -> Split:
    """80% train, 10% val, 10% test by a hash of the key: the same on every machine, whatever else is in the dataset."""
    part = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return "train" if part < 8 else "val" if part == 8 else "test"


def build_dataset(
    listing: Listing, output: Path, config: BuildConfig, on_image: Callable[[], object] = lambda: None
) -> tuple[Manifest, list[str]]:
    """Write a dataset folder; returns its manifest and the reasons of the images that were skipped.

    The folder appears when it is complete, in place of an earlier dataset there.

    Raises:
        DataError: an image cannot be read (unless `on_error` is "skip"), two images have one key, nothing is left,
            or `output` holds something other than a dataset.
    """
    _check_output(output)
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        manifest, problems = _write(listing, partial, config, on_image)
        _replace_folder(partial, output)
    except OSError as error:
        raise DataError(f"{output} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest, problems


def _write(
    listing: Listing, folder: Path, config: BuildConfig, on_image: Callable[[], object]
) -> tuple[Manifest, list[str]]:
    tally = Tally()
    with ShardSetWriter(folder, config.shard_images) as writer:
        for rendered in _render_all(listing.images, config):
            _write_one(rendered, writer, tally, config)
            on_image()
    if not tally.origins:
        raise DataError(f"{listing.description} gave no image; nothing was written")
    manifest = _manifest(listing, writer, tally, config)
    write_manifest(manifest, folder)
    return manifest, tally.problems


def _write_one(rendered: Rendered, writer: ShardSetWriter, tally: Tally, config: BuildConfig) -> None:
    image = rendered.image
    if rendered.problem:
        if config.on_error == "fail":
            raise DataError(f"{rendered.problem}; remove it, or leave such files out with --on-error skip")
        tally.problems.append(rendered.problem)
        return
    if image.key in tally.origins:
        raise DataError(f"{tally.origins[image.key]} and {image.origin} have one key '{image.key}': rename one of them")
    tally.origins[image.key] = image.origin
    tally.n_enlarged += rendered.was_enlarged
    writer.write(image.split or split_of(image.key), Sample(image.key, rendered.png, image.label))


def _render_all(images: Iterable[SourceImage], config: BuildConfig) -> Iterator[Rendered]:
    """Render in parallel, in the order of the source, holding only a few images at a time."""
    pending: deque[Future[Rendered]] = deque()
    with ThreadPoolExecutor(config.workers) as pool:
        for image in images:
            pending.append(pool.submit(_render, image, config))
            if len(pending) > 4 * config.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _render(image: SourceImage, config: BuildConfig) -> Rendered:
    try:
        rgb = to_rgb(image.open())
    except DataError as error:
        return Rendered(image, problem=str(error))
    png = to_png(fit(rgb, config.image_size, config.resize))
    return Rendered(image, png, was_enlarged=min(rgb.size) < config.image_size)


def _manifest(listing: Listing, writer: ShardSetWriter, tally: Tally, config: BuildConfig) -> Manifest:
    shards = writer.entries()
    return Manifest(
        name=config.name,
        image_size=config.image_size,
        n_samples={split: sum(shard.n_samples for shard in shards if shard.split == split) for split in SPLITS},
        class_names=list(listing.class_names),
        source=listing.description,
        licence=listing.licence,
        resize=config.resize,
        n_skipped=len(tally.problems),
        n_enlarged=tally.n_enlarged,
        shards=shards,
    )


def _check_output(output: Path) -> None:
    """Only an earlier dataset or an empty folder may be replaced."""
    is_replaceable = not output.exists() or (output.is_dir() and (not any(output.iterdir()) or _is_dataset(output)))
    if not is_replaceable:
        raise DataError(f"{output} exists and is not a dataset: choose another --out, or remove it")


def _is_dataset(folder: Path) -> bool:
    others = [path for path in folder.iterdir() if path.suffix != ".tar" and path.name != MANIFEST]
    return (folder / MANIFEST).is_file() and not others


def _replace_folder(new: Path, place: Path) -> None:
    old = place.with_name(f"{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)
