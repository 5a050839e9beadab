"""Shards to staged arrays: every image checked, decoded once, and written where training can map it into memory.

A shard whose staged form is whole and whose checksum has not changed is left alone; so after one corrupt shard is
repaired, only that one is staged again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from invfusion.data.files import replacing, write_text
from invfusion.data.images import open_image, to_array, to_rgb
from invfusion.data.manifest import MANIFEST, RESTORE, SPLITS, Manifest, ShardEntry, read_manifest
from invfusion.data.shards import read_shard
from invfusion.data.staged import NO_LABEL, StagedManifest, StagedShard, digest_of, read_sidecar
from invfusion.errors import DataError
from invfusion.files import sha256_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """One finished shard; `was_current` when there was nothing to do."""

    file: str
    n_samples: int
    was_current: bool


def stage_dataset(
    shards: Path,
    output: Path,
    image_size: int,
    on_shard: Callable[[Progress], None] = lambda _: None,
    *,
    max_skipped: int = 0,
) -> StagedManifest:
    """Bring `output` up to date with the dataset folder `shards`, calling `on_shard` after each good shard.

    Up to `max_skipped` samples that are missing, damaged or there twice are left out, each with a warning; by default
    none may be.

    Raises:
        DataError: anything is wrong with the dataset. All shards are tried and the good ones kept before it is raised;
            the message lists every problem with its shard and key.
    """
    manifest = read_manifest(shards)
    if manifest.image_size != image_size:
        raise DataError(
            f"{shards} holds images of {manifest.image_size} px and data.image_size is {image_size}: "
            f"rebuild it with --size {image_size}, or change data.image_size"
        )
    (output / MANIFEST).unlink(missing_ok=True)  # until all is well, there is no staged dataset
    problems = _unlisted(manifest, shards)
    staged: dict[str, StagedShard] = {}
    budget = Budget(max_skipped)
    for entry in manifest.shards:
        before = budget.skipped
        try:
            staged[entry.file], was_current = _stage_shard(entry, shards, output, image_size, budget)
            on_shard(Progress(entry.file, entry.n_samples, was_current))
        except DataError as error:
            budget.skipped = before  # what was left out one by one is among them
            if not budget.allows(entry.n_samples, f"all {entry.n_samples} samples of {entry.file}: {error}"):
                problems.append(str(error))
    if budget.skipped:
        log.warning("%d samples were left out, %d may be", budget.skipped, max_skipped)
    _remove_stale(manifest, output)
    _raise_all(problems + _repeated_keys(staged), shards)
    return _write_staged_manifest(manifest, staged, output)


@dataclass
class Budget:
    """How many samples may be left out, and how many were."""

    most: int
    skipped: int = 0

    def allows(self, n_samples: int, what: str) -> bool:
        """Leave out `n_samples` more, with a warning; False where that would be too many."""
        if self.skipped + n_samples > self.most:
            return False
        self.skipped += n_samples
        log.warning("left out %s", what)
        return True


def _stage_shard(
    entry: ShardEntry, shards: Path, output: Path, image_size: int, budget: Budget
) -> tuple[StagedShard, bool]:
    """The shard's sidecar, and whether its staged form was already there."""
    _check_sum(entry, shards)
    array_path = output / entry.split / f"{Path(entry.file).stem}.npy"
    current = _current(entry, array_path)
    if current is not None:
        return current, True
    sidecar_path = array_path.with_suffix(".json")
    sidecar_path.unlink(missing_ok=True)
    pixels, keys, labels = _decode_shard(entry, shards, image_size, budget)
    with replacing(array_path) as partial, partial.open("wb") as file:
        np.save(file, pixels)
    sidecar = StagedShard(
        source=entry.file,
        source_sha256=entry.sha256,
        pixels_sha256=sha256_of(array_path),
        keys=keys,
        labels=labels,
    )
    write_text(sidecar_path, sidecar.model_dump_json() + "\n")
    return sidecar, False


def _check_sum(entry: ShardEntry, shards: Path) -> None:
    """Compare the shard with the manifest; where they differ, look for the place of the damage."""
    path = shards / entry.file
    if not path.is_file():
        raise DataError(f"{path} is missing: {RESTORE}, or rebuild it")
    if sha256_of(path) == entry.sha256:
        return
    _decode_shard(entry, shards, None, Budget(0))
    raise DataError(f"{path} is not the file that the manifest lists (SHA-256 differs): {RESTORE}, or rebuild it")


def _current(entry: ShardEntry, array_path: Path) -> StagedShard | None:
    """The sidecar of a staged array that is whole and of this very shard; None where staging has to be done."""
    try:
        sidecar = read_sidecar(array_path.with_suffix(".json"))
    except DataError:
        return None
    is_whole = len(sidecar.keys) == entry.n_samples  # else some were left out, which may not be allowed any more
    is_current = is_whole and sidecar.source_sha256 == entry.sha256 and array_path.is_file()
    return sidecar if is_current and sha256_of(array_path) == sidecar.pixels_sha256 else None


def _decode_shard(
    entry: ShardEntry, shards: Path, image_size: int | None, budget: Budget
) -> tuple[NDArray[np.uint8], list[str], list[int]]:
    """Pixels (N, C, H, W), keys and labels of one shard. Sizes are not compared where `image_size` is None."""
    path = shards / entry.file
    pixels: list[NDArray[np.uint8]] = []
    labels: dict[str, int] = {}
    n_read = 0
    for sample in read_shard(path):
        n_read += 1
        try:
            if sample.key in labels:
                raise DataError(f"{path}: key '{sample.key}' appears twice; rebuild the dataset")
            pixels.append(_decode_image(sample.image, f"{path}: key '{sample.key}'", image_size))
            labels[sample.key] = NO_LABEL if sample.label is None else sample.label
        except DataError as error:
            if not budget.allows(1, str(error)):
                raise
    if n_read != entry.n_samples or not pixels:
        raise DataError(f"{path} holds {n_read} samples, the manifest says {entry.n_samples}; rebuild the dataset")
    return np.stack(pixels), list(labels), list(labels.values())


def _decode_image(content: bytes, origin: str, image_size: int | None) -> NDArray[np.uint8]:
    image = open_image(content, origin)
    if image_size is not None and image.size != (image_size, image_size):
        raise DataError(
            f"{origin} is {image.width}x{image.height}, not {image_size}x{image_size}; rebuild the dataset "
            f"with --size {image_size}"
        )
    return to_array(to_rgb(image, origin))


def _unlisted(manifest: Manifest, shards: Path) -> list[str]:
    listed = {entry.file for entry in manifest.shards}
    return [
        f"{path} is not in the manifest: remove it, or rebuild the dataset"
        for path in sorted(shards.glob("*.tar"))
        if path.name not in listed
    ]


def _repeated_keys(staged: dict[str, StagedShard]) -> list[str]:
    """Keys that stand in more than one shard; across splits they would leak test images into training."""
    seen: set[str] = set()
    repeated: set[str] = set()
    for sidecar in staged.values():
        repeated |= seen.intersection(sidecar.keys)
        seen.update(sidecar.keys)
    if not repeated:
        return []
    holders: dict[str, list[str]] = {key: [] for key in sorted(repeated)}
    for file, sidecar in staged.items():
        for key in repeated.intersection(sidecar.keys):
            holders[key].append(file)
    return [f"key '{key}' stands in {' and in '.join(files)}; rebuild the dataset" for key, files in holders.items()]


def _remove_stale(manifest: Manifest, output: Path) -> None:
    """Remove what earlier datasets and killed runs left behind."""
    wanted = {output / entry.split / Path(entry.file).stem for entry in manifest.shards}
    for split in SPLITS:
        for path in (output / split).glob("*"):
            if path.with_suffix("") not in wanted or path.suffix not in {".npy", ".json"}:
                path.unlink()


def _raise_all(problems: list[str], shards: Path) -> None:
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError(
            f"{len(problems)} problems in {shards}:\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def _write_staged_manifest(manifest: Manifest, staged: dict[str, StagedShard], output: Path) -> StagedManifest:
    present = [entry for entry in manifest.shards if entry.file in staged]
    files = {split: [entry.file for entry in present if entry.split == split] for split in SPLITS}
    result = StagedManifest(
        name=manifest.name,
        image_size=manifest.image_size,
        channels=manifest.channels,
        class_names=manifest.class_names,
        n_samples={split: sum(len(staged[file].keys) for file in files[split]) for split in SPLITS},
        digests={split: digest_of([staged[file] for file in files[split]]) for split in SPLITS},
        shards={split: [Path(file).stem for file in files[split]] for split in SPLITS},
    )
    write_text(output / MANIFEST, result.model_dump_json(indent=2) + "\n")
    return result
