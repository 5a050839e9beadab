from pathlib import Path

import pytest
from noise_data import SIZE, png
from test_sources import make_folder

from invfusion.data import StagedDataset
from invfusion.data.build import Account, BuildConfig, build_dataset, split_of
from invfusion.data.manifest import Manifest, read_manifest
from invfusion.data.shards import read_shard
from invfusion.data.sources.folder import FolderConfig
from invfusion.data.sources.shards import ShardsConfig
from invfusion.data.staging import stage_dataset
from invfusion.errors import DataError

CONFIG = BuildConfig(name="mine", image_size=SIZE, shard_images=4)
SKIP = CONFIG.model_copy(update={"on_error": "skip"})
PATHS = [f"{name}/{i:02d}.png" for name in "ab" for i in range(10)]


def build(folder: Path, output: Path, config: BuildConfig = CONFIG) -> tuple[Manifest, Account]:
    return build_dataset(FolderConfig(path=folder, labels=True).open(), output, config)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images", PATHS)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_manifest_tells_the_truth(folder: Path, tmp_path: Path) -> None:
    manifest, account = build(folder, tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "out")
    assert str(account) == "20 entries: 20 read, 0 skipped"
    assert sum(manifest.n_samples.values()) == 20
    assert manifest.class_names == ["a", "b"]
    keys = {s.key: e.split for e in manifest.shards for s in read_shard(tmp_path / "out" / e.file)}
    assert keys == {path.removesuffix(".png"): split_of(path.removesuffix(".png")) for path in PATHS}
    assert max(entry.n_samples for entry in manifest.shards) == 4


@pytest.mark.parametrize("workers", [1, 3])
def test_building_again_gives_the_same_bytes(folder: Path, tmp_path: Path, workers: int) -> None:
    build(folder, tmp_path / "out")
    first = bytes_of(tmp_path / "out")
    build(folder, tmp_path / "out", CONFIG.model_copy(update={"workers": workers}))
    assert bytes_of(tmp_path / "out") == first
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out"}


def test_shards_of_shards_are_the_same_dataset(dataset: Path, tmp_path: Path) -> None:
    config = BuildConfig(name="noise", image_size=SIZE)
    build_dataset(ShardsConfig(path=dataset).open(), tmp_path / "again", config)
    for name, shards in [("one", dataset), ("two", tmp_path / "again")]:
        stage_dataset(shards, tmp_path / name, SIZE)
    one, two = (StagedDataset(tmp_path / name, "train") for name in ("one", "two"))
    assert one.keys == two.keys
    assert one.labels.equal(two.labels)
    assert one.read(range(10)).equal(two.read(range(10)))


def test_splits_hold_the_promised_parts() -> None:
    splits = [split_of(f"key{i}") for i in range(5000)]
    assert splits.count("train") == pytest.approx(4000, abs=100)
    assert splits.count("val") == pytest.approx(500, abs=75)


def test_a_key_keeps_its_split_on_every_machine() -> None:
    assert [split_of(f"digit{i:04d}") for i in range(8)] == [
        "train",
        "train",
        "val",
        "train",
        "test",
        "test",
        "train",
        "train",
    ]


def test_a_non_image_is_named_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"a/notes\.txt is not an image .*--on-error skip"):
        build(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"images"}


def test_skipped_files_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "notes.txt").write_text("hello")
    manifest, account = build(folder, tmp_path / "out", SKIP)
    assert manifest.n_skipped == 1
    assert sum(manifest.n_samples.values()) == 20
    assert str(account) == "21 entries: 20 read, 1 skipped (1 no known format)"
    assert len(account.problems) == 1
    assert "a/notes.txt is not an image" in account.problems[0]


def test_nothing_but_non_images(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("hello")
    listing = FolderConfig(path=tmp_path / "images").open()
    with pytest.raises(DataError, match=r"gave no image \(1 entries: 0 read, 1 skipped.*; nothing was written"):
        build_dataset(listing, tmp_path / "out", SKIP)


def test_two_images_of_one_key_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "03.jpg").write_bytes(png(5))
    with pytest.raises(DataError, match=r"a/03\.jpg and .*a/03\.png have one key 'a/03'"):
        build(folder, tmp_path / "out")


def test_a_failed_build_keeps_the_earlier_dataset(folder: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    first = bytes_of(tmp_path / "out")
    (folder / "a" / "99.png").write_text("hello")
    with pytest.raises(DataError, match=r"99\.png"):
        build(folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == first


def test_other_files_are_never_replaced(folder: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="out exists and is not a dataset"):
        build(folder, tmp_path / "out")


def test_enlarged_images_are_counted(folder: Path, tmp_path: Path) -> None:
    manifest, _ = build(folder, tmp_path / "out", CONFIG.model_copy(update={"image_size": 16}))
    assert manifest.n_enlarged == 20
