from pathlib import Path

import pytest
from noise_data import png, rewrite_tar, write_dataset

from invfusion.data.manifest import MANIFEST, read_manifest
from invfusion.data.shards import Sample, ShardSetWriter, read_shard
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
