import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from noise_data import png, rewrite_tar, write_dataset

from invfusion.data.manifest import MANIFEST, read_manifest
from invfusion.data.shards import Sample, ShardSetWriter, Unread, read_records, read_shard
from invfusion.errors import DataError


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = write_dataset(tmp_path / "one"), write_dataset(tmp_path / "two%d")
    files = sorted(path.name for path in one.iterdir())
    assert files == [MANIFEST, "test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar"]
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_what_was_written_is_read(dataset: Path) -> None:
    samples = list(read_shard(dataset / "train-000001.tar"))
    assert samples[0] == Sample("train/05", png(5), 1)
    assert [sample.key for sample in samples] == [f"train/{i:02d}" for i in range(5, 10)]


def test_no_label_is_no_class_file(tmp_path: Path) -> None:
    with ShardSetWriter(tmp_path, 10) as writer:
        writer.write("val", Sample("a", png(0), None))
    (entry,) = writer.entries()
    assert (entry.split, entry.n_samples) == ("val", 1)
    assert list(read_shard(tmp_path / entry.file)) == [Sample("a", png(0), None)]


def test_a_key_that_tars_lose_is_refused(tmp_path: Path) -> None:
    with ShardSetWriter(tmp_path, 10) as writer:
        writer.write("val", Sample("__meta__/a", png(0), None))
        writer.write("val", Sample("b", png(0), None))
    with pytest.raises(DataError, match="cannot carry the key '__meta__/a'"):
        writer.entries()


def test_a_missing_tar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar does not exist"):
        list(read_shard(tmp_path / "gone.tar"))


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.27, 0.49])
def test_a_cut_tar_names_shard_and_last_key(dataset: Path, keep: float) -> None:
    path = dataset / "train-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DataError, match=r"train-000000\.tar.*(key 'train/0\d'|the beginning)"):
        list(read_shard(path))


def test_a_destroyed_header_is_not_the_end(dataset: Path) -> None:
    """WebDataset itself reads such a tar without error or warning, and loses the rest."""
    path = dataset / "train-000000.tar"
    content = bytearray(path.read_bytes())
    header = content.index(b"train/02")
    content[header : header + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000000\.tar is damaged .* after key 'train/01' .*hides the rest"):
        list(read_shard(path))


@pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"not a tar at all " * 100])
def test_a_file_without_records(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-000000.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-000000\.tar is damaged or cut short after the beginning"):
        list(read_shard(path))


def test_a_record_without_image(dataset: Path) -> None:
    path = dataset / "val-000000.tar"
    rewrite_tar(path, [("a.cls", b"1"), ("a.txt", b"x")])
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'a' has no image, only cls, txt"):
        list(read_shard(path))


@pytest.mark.parametrize("label", [b"cat", b"-2", b""])
def test_a_class_that_is_no_number(dataset: Path, label: bytes) -> None:
    path = dataset / "val-000000.tar"
    rewrite_tar(path, [("a.cls", label), ("a.png", png(0))])
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'a' has class"):
        list(read_shard(path))


def test_a_missing_manifest_names_both_remedies(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json does not exist: .*dvc pull.*components\.data\.build_dataset"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"shards": 3}'])
def test_a_broken_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is not a dataset manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["shards"].append(values["shards"][0]), r"it lists train-000000\.tar twice"),
        (lambda values: values["n_samples"].update(train=20), "n_samples says 20 train, its shards hold 10"),
        (lambda values: values["shards"][0].update(split="test"), "n_samples says 10 train, its shards hold 5"),
    ],
)
def test_a_manifest_that_contradicts_itself(dataset: Path, change: Callable[[Any], None], message: str) -> None:
    values = json.loads((dataset / MANIFEST).read_text())
    change(values)
    (dataset / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"manifest\.json is not a dataset manifest .*{message}"):
        read_manifest(dataset)


def test_every_file_of_a_tar_is_accounted_for(tmp_path: Path) -> None:
    members = [
        *[("a/._b.png", b"x"), ("a/.DS_Store", b"x"), ("__meta__", b"x")],
        *[("a/b.png", png(0)), ("a/b.cls", b"1"), ("a/b.json", b"{}"), ("a/c.jpg", png(1)), ("a/c.png", png(1))],
        *[("d.txt", b"x"), ("e.cls", b"cat"), ("e.png", png(2)), ("README", b"x"), ("../f.png", png(3))],
        (f"{'long' * 60}.png", png(4)),
    ]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind in [
            ("link.png", tarfile.SYMTYPE),
            ("same.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a/b.png"
            archive.addfile(info)
    found = list(read_records(tmp_path / "x.tar"))
    assert [sample.key for sample in found if isinstance(sample, Sample)] == ["a/b", "a/c", "long" * 60]
    counts: Counter[str] = Counter()
    for item in found:
        counts["read" if isinstance(item, Sample) else item.reason] += 1 if isinstance(item, Sample) else item.n_files
    assert counts == {
        "read": 3,
        "hidden": 3,
        "beside an image": 2,
        "no image in its record": 1,
        "no class number": 2,
        "a name without suffix": 1,
        "its name points out of its folder": 1,
        "a link": 2,
        "no regular file": 1,
    }
    second = next(item for item in found if isinstance(item, Unread) and "two images" in item.problem)
    assert "key 'a/c' has two images, png and jpg" in second.problem


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_damage_in_a_compressed_tar_is_found(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "x.tar.any"
    with tarfile.open(path, mode) as archive:
        for i in range(20):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(png(i))
            archive.addfile(info, io.BytesIO(png(i)))
    assert len(list(read_shard(path))) == 20
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert (
        "is damaged or cut short after" in [item.problem for item in read_records(path) if isinstance(item, Unread)][-1]
    )
