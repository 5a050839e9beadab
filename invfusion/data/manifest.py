"""What a dataset folder promises of itself: its shards with their counts and checksums."""

from collections import Counter
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from invfusion.data.files import write_text
from invfusion.errors import DataError
from invfusion.schema import Config

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MANIFEST = "manifest.json"
# When DVC runs, it notes changed files as the new content of the dataset: its note has to be restored first.
RESTORE = "`git checkout data.dvc && dvc pull --force data` brings a tracked dataset back"


class ShardEntry(Config):
    """One WebDataset tar."""

    file: str = Field(pattern=r"^[^/\\]+\.tar$")
    split: Split
    n_samples: int = Field(ge=1)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Config):
    """A dataset of square RGB images of `image_size` pixels, in shards.

    `class_names` is empty where the images carry no labels. `n_skipped` counts files of the source that gave no image,
    `n_enlarged` those that were smaller than `image_size`.
    """

    format: Literal[1] = 1
    name: str
    image_size: int = Field(ge=1)
    channels: Literal[3] = 3
    n_samples: dict[Split, int]
    class_names: list[str] = Field(default_factory=list)
    source: str
    licence: str
    resize: str
    n_skipped: int = Field(default=0, ge=0)
    n_enlarged: int = Field(default=0, ge=0)
    shards: list[ShardEntry]

    @model_validator(mode="after")
    def _counts_each_shard_once(self) -> Self:
        twice = [file for file, count in Counter(shard.file for shard in self.shards).items() if count > 1]
        if twice:
            raise ValueError(f"it lists {twice[0]} twice")
        for split in SPLITS:
            listed = sum(shard.n_samples for shard in self.shards if shard.split == split)
            if listed != self.n_samples.get(split, 0):
                raise ValueError(f"n_samples says {self.n_samples.get(split, 0)} {split}, its shards hold {listed}")
        return self


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder.

    Raises:
        DataError: there is none, or it is not one.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist: {RESTORE}, or build one with "
            f"`python -m components.data.build_dataset --out {folder} ...`"
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a dataset manifest ({_first_problem(error)}): rebuild the dataset") from error


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it atomically; equal manifests give equal bytes."""
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _first_problem(error: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not text"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
