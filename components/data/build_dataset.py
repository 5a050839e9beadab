"""Build a dataset of WebDataset shards from images.

The default dataset:
    python -m components.data.build_dataset --source digits --out data/digits16 --size 16
FFHQ at 64 px:
    python -m components.data.build_dataset --source folder --path ffhq/ --out data/ffhq64 --size 64
ImageNet at 64 px:
    python -m components.data.build_dataset --source folder --path imagenet/ --out data/imagenet64 \\
        --size 64 --resize adm --labels
A zip:
    python -m components.data.build_dataset --source zip --path mine.zip --out data/mine64 --size 64
Ten pieces of each of a few photographs:
    python -m components.data.build_dataset --source folder --path mine/ --out data/mine64 --size 64 --crops 10
Existing shards:
    python -m components.data.build_dataset --source shards --path tars/ --out data/mine64 --size 64

Images are cut to their central square and resized with an anti-aliased filter, but for --crops; grey becomes RGB,
transparency white, and EXIF orientation is applied. Colour profiles are not; floating-point, signed and 32-bit pixels
are refused, as their range is unknown. An image's key is its path in the source without the suffix. Top-level folders
(or shard names) train, val and test give the split, below any folders that hold everything; without them a hash of the
key puts 80% into train, 10% into val and 10% into test. Where such folders lie elsewhere, the source is refused.
Every file of the source is read, skipped (hidden ones always, others with --on-error skip) or the reason to stop; the
last lines say how many.
Running the command again gives the same bytes. The folder appears when it is complete, never half-written.
Then `dvc add data` versions it, `dvc push -r <a remote of yours>` shares it (the default remote lies inside the
repository and is meant for the small default dataset only), and `data.shards`, `data.image_size` in params.yaml select
it.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from components import cli
from invfusion.data.build import BuildConfig, build_dataset, scratch_folders
from invfusion.data.images import Resize
from invfusion.data.manifest import Manifest
from invfusion.data.sources import SOURCES, AnySource, Source
from invfusion.errors import ConfigError

log = logging.getLogger(__name__)

SHOWN_PROBLEMS = 10
LEFT_BEHIND = "{0} is of a build that was killed, or runs now; an earlier dataset may lie in it, else remove it"


def command_line() -> argparse.ArgumentParser:
    """All options."""
    parser = cli.parser(__doc__, params=False)
    parser.add_argument("--source", required=True, choices=list(SOURCES), help="what kind of source to read")
    parser.add_argument("--path", type=Path, help="the folder, zip, tar or folder of tars (none for digits)")
    parser.add_argument("--out", required=True, type=Path, help="dataset folder to make, e.g. data/mine64")
    parser.add_argument("--size", required=True, type=int, help="width and height of the images in pixels")
    parser.add_argument("--name", help="name of the dataset (default: the last part of --out)")
    parser.add_argument("--labels", action="store_true", help="folder and zip: the first-level folders are classes")
    parser.add_argument("--licence", help="a note on the licence of the images, kept in the manifest")
    parser.add_argument(
        "--resize",
        default="bicubic",
        choices=get_args(Resize),
        help="filter; the paper used bicubic for FFHQ, adm for ImageNet",
    )
    parser.add_argument(
        "--crops",
        type=int,
        default=0,
        help="so many squares of --size pixels from random places of each picture at its own resolution, all in one "
        "split, instead of its central square, resized: many images of few pictures",
    )
    parser.add_argument(
        "--on-error",
        default="fail",
        choices=["fail", "skip"],
        help="stop at a file that is no image, or leave it out, count it and name it",
    )
    parser.add_argument("--shard-images", type=int, default=1000, help="images per shard at most (default: 1000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that decode and resize")
    return parser


def configure(options: argparse.Namespace) -> tuple[Source, BuildConfig]:
    """The command line as typed configurations.

    Raises:
        ConfigError: an option is missing, out of range, or means nothing to the chosen source.
    """
    given = {"path": options.path, "labels": options.labels, "licence": options.licence}
    section = {"kind": options.source, **{name: value for name, value in given.items() if value}}
    build: dict[str, Any] = {
        "name": options.name or options.out.resolve().name,
        "image_size": options.size,
        "resize": options.resize,
        "crops": options.crops,
        "on_error": options.on_error,
        "shard_images": options.shard_images,
        "workers": options.workers,
    }
    try:
        source: Source = TypeAdapter(AnySource).validate_python(section)
        return source, BuildConfig.model_validate(build)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("image_size", "size").replace("_", "-")
        reason = "takes no such option" if first["type"] == "extra_forbidden" else first["msg"]
        raise ConfigError(f"--{option}: {reason} (source '{options.source}')") from None


def run(source: Source, output: Path, config: BuildConfig) -> Manifest:
    """Build with a progress bar, and say what came out."""
    listing = source.open()
    for warning in [*listing.warnings, *map(LEFT_BEHIND.format, scratch_folders(output))]:
        log.warning("warning: %s", warning)
    with tqdm(total=listing.n_images, desc=config.name, unit="image") as bar:
        manifest, account = build_dataset(listing, output, config, on_image=bar.update)
    for problem in account.problems[:SHOWN_PROBLEMS]:
        log.warning("skipped: %s", problem)
    if len(account.problems) > SHOWN_PROBLEMS:
        log.warning("... and %d more skipped", len(account.problems) - SHOWN_PROBLEMS)
    if manifest.n_enlarged:
        log.warning("%d images were smaller than %d px and were enlarged", manifest.n_enlarged, config.image_size)
    if account.n_profiles:
        log.warning("%d images have a colour profile, which was not applied", account.n_profiles)
    for split, count in manifest.n_samples.items():
        if not count:
            log.warning("the split '%s' is empty: a step that uses it will refuse to run", split)
    log.info("%s: %s", listing.description, account)
    counts = ", ".join(f"{split} {count}" for split, count in manifest.n_samples.items())
    log.info("%s: %s in %d shards", output, counts, len(manifest.shards))
    return manifest


def main(arguments: list[str] | None = None) -> None:
    """Entry point; deliberate errors are shown without a traceback."""
    with cli.started(command_line(), arguments) as options:
        source, config = configure(options)
        run(source, options.out, config)


if __name__ == "__main__":
    main()
