"""Cost of large datasets, simulated: manifests, checksums and sidecars of so many samples, and images of one pixel."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.scale.curves import Clock, Curve
from invfusion.data import StagedDataset, TrainingStream
from invfusion.data.manifest import Manifest, ShardEntry, write_manifest
from invfusion.data.staging import stage_dataset
from invfusion.files import sha256_of

SAMPLES = (10_000, 100_000, 1_000_000, 10_000_000)
# As many as `build_dataset` writes into one.
SHARD = 1000
MICRO_BATCH = 32


def datasets(samples: Sequence[int]) -> Iterator[Curve]:
    """A dataset that has been staged: found to be up to date, opened, and read from."""
    yield Curve("dataset of shards", "samples", samples, 1, opened)


def opened(n: int, clock: Clock) -> None:
    """What a run does that finds the dataset as it was, and training until its first batch."""
    with tempfile.TemporaryDirectory() as name:
        shards, staged = Path(name) / "shards", Path(name) / "staged"
        simulate(shards, staged, n)
        with clock("staging, nothing to do"):
            stage_dataset(shards, staged, 1)
        with clock("opening"):
            dataset = StagedDataset(staged, "train")
        stream = TrainingStream(dataset, seed=0, micro_batch_size=MICRO_BATCH)
        with clock("order and first batch"):
            stream.batch(0)
        del dataset, stream


def simulate(shards: Path, staged: Path, n: int) -> None:
    """A dataset folder whose tars hold nothing, and the staged form that these would have."""
    (staged / "train").mkdir(parents=True)
    shards.mkdir()
    (shards / "tar").write_bytes(b"nothing")
    source_sum, pixels = sha256_of(shards / "tar"), staged / "pixels.npy"
    entries = []
    for number, first in enumerate(range(0, n, SHARD)):
        count, file = min(SHARD, n - first), f"train-{number:06d}.tar"
        if first == 0 or count < SHARD:
            np.save(pixels, np.zeros((count, 3, 1, 1), dtype=np.uint8))
            pixels_sum = sha256_of(pixels)
        array = staged / "train" / f"train-{number:06d}.npy"
        array.write_bytes(pixels.read_bytes())
        (shards / file).write_bytes(b"nothing")
        sidecar = {
            "source": file, "source_sha256": source_sum, "pixels_sha256": pixels_sum,
            "keys": [f"image-{first + i:08d}" for i in range(count)], "labels": [i % 1000 for i in range(count)],
        }  # fmt: skip
        array.with_suffix(".json").write_text(json.dumps(sidecar))
        entries.append(ShardEntry(file=file, split="train", n_samples=count, sha256=source_sum))
    pixels.unlink()
    (shards / "tar").unlink()
    manifest = Manifest(
        name="simulated", image_size=1, n_samples={"train": n}, source="none", licence="none", resize="none",
        shards=entries,
    )  # fmt: skip
    write_manifest(manifest, shards)
