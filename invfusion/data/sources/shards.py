"""WebDataset shards that exist already, of any resolution and any maker."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from invfusion.data.manifest import MANIFEST, Split, read_manifest
from invfusion.data.shards import read_shard
from invfusion.data.sources.base import NOT_STATED, Listing, SourceImage
from invfusion.data.sources.files import SPLIT_FOLDERS
from invfusion.errors import DataError
from invfusion.schema import Config


class ShardsConfig(Config):
    """One tar, or every *.tar under a folder. Names that begin with train, val or test give the split."""

    kind: Literal["shards"] = "shards"
    path: Path
    licence: str = NOT_STATED

    def open(self) -> Listing:
        """Raises `DataError` where there is no tar."""
        tars = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.tar"))
        if not tars:
            raise DataError(f"{self.path} holds no .tar files: name a tar or a folder of them")
        manifest = read_manifest(self.path) if (self.path / MANIFEST).is_file() else None
        return Listing(
            description=f"WebDataset shards {self.path.resolve().name}",
            licence=manifest.licence if manifest and self.licence == NOT_STATED else self.licence,
            images=self._read(tars),
            n_images=sum(manifest.n_samples.values()) if manifest else None,
            class_names=tuple(manifest.class_names) if manifest else (),
        )

    def _read(self, tars: list[Path]) -> Iterator[SourceImage]:
        splits = [_split_of(path) for path in tars]
        if any(splits) and not all(splits):
            odd = tars[splits.index(None)]
            raise DataError(f"{self.path}: some shards are named by split and {odd.name} is not; name all or none so")
        for path, split in zip(tars, splits, strict=True):
            for sample in read_shard(path):
                yield SourceImage(sample.key, f"{path}: key '{sample.key}'", sample.image, sample.label, split)


def _split_of(path: Path) -> Split | None:
    return SPLIT_FOLDERS.get(path.name.lower().split("-")[0].split("_")[0].split(".")[0])
