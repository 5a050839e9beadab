"""Small datasets of noise, and tools that damage them as faulty disks and makers of shards would."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from invfusion.data.manifest import SPLITS, Manifest, write_manifest
from invfusion.data.shards import Sample, ShardSetWriter
from invfusion.files import sha256_of

SIZE = 8


def png(seed: int, width: int = SIZE, height: int = SIZE) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_dataset(folder: Path, shard_images: int = 5, counts: tuple[int, int, int] = (10, 3, 3)) -> Path:
    """Shards train-000000, train-000001, val-000000, test-000000 with keys train/0 ... and classes 0 and 1."""
    folder.mkdir()
    with ShardSetWriter(folder, shard_images) as writer:
        for split, count in zip(SPLITS, counts, strict=True):
            for i in range(count):
                writer.write(split, Sample(f"{split}/{i:02d}", png(1000 * SPLITS.index(split) + i), i % 2))
    manifest = Manifest(
        name="noise",
        image_size=SIZE,
        n_samples=dict(zip(SPLITS, counts, strict=True)),
        class_names=["even", "odd"],
        source="noise",
        licence="none",
        resize="bicubic",
        shards=writer.entries(),
    )
    write_manifest(manifest, folder)
    return folder


def rewrite_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Replace a shard and make the manifest agree, as a faulty maker of shards would."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    trust(path)


def members_of(path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of a tar's files."""
    with tarfile.open(path) as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive.getmembers()]


def trust(path: Path) -> None:
    """Write the file's present checksum into the manifest beside it."""
    manifest = path.parent / "manifest.json"
    values = json.loads(manifest.read_text())
    for shard in values["shards"]:
        if shard["file"] == path.name:
            shard["sha256"] = sha256_of(path)
    manifest.write_text(json.dumps(values))
