import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_data import SIZE, members_of, png, rewrite_tar, trust, write_dataset
from PIL import Image

from invfusion.data import StagedDataset, staging
from invfusion.data.shards import read_shard
from invfusion.data.staged import Keys
from invfusion.data.staging import Progress, stage_dataset
from invfusion.errors import DataError


def stage(dataset: Path) -> list[Progress]:
    progress: list[Progress] = []
    stage_dataset(dataset, dataset.parent / "staged", SIZE, progress.append)
    return progress


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_staged_pixels_are_those_of_the_shards(dataset: Path, staged: Path) -> None:
    train = StagedDataset(staged, "train")
    sample = list(read_shard(dataset / "train-000001.tar"))[2]
    assert (train.keys[7], train.labels[7]) == (sample.key, sample.label)
    (dataset / "one.png").write_bytes(sample.image)
    pixels = np.asarray(Image.open(dataset / "one.png")).transpose(2, 0, 1)
    assert torch.equal(train.read([7])[0], torch.from_numpy(pixels.copy()))
    assert train.class_names == ["even", "odd"]


def test_staging_twice_does_nothing_and_gives_equal_bytes(dataset: Path) -> None:
    assert not any(p.was_current for p in stage(dataset))
    first = files_of(dataset.parent / "staged")
    assert all(p.was_current for p in stage(dataset))
    assert files_of(dataset.parent / "staged") == first


def test_a_damaged_staged_array_is_made_again(dataset: Path, staged: Path) -> None:
    before = files_of(staged)
    array = staged / "train" / "train-000001.npy"
    array.write_bytes(array.read_bytes()[:-7])
    assert [p.file for p in stage(dataset) if not p.was_current] == ["train-000001.tar"]
    assert files_of(staged) == before


def test_leftovers_are_removed(dataset: Path, staged: Path) -> None:
    for name in ["train-000009.npy", "train-000009.json", "train-000000.npy.partial"]:
        (staged / "train" / name).write_text("old")
    stage(dataset)
    assert sorted(path.name for path in (staged / "train").iterdir()) == [
        "train-000000.json",
        "train-000000.npy",
        "train-000001.json",
        "train-000001.npy",
    ]


def test_a_repaired_shard_is_the_only_one_staged_again(dataset: Path) -> None:
    path = dataset / "train-000001.tar"
    good = path.read_bytes()
    path.write_bytes(good[:3000])
    with pytest.raises(DataError, match=r"train-000001\.tar is damaged or cut short after key 'train/05'"):
        stage(dataset)
    staged = dataset.parent / "staged"
    assert {p.stem for p in staged.rglob("*.npy")} == {"train-000000", "val-000000", "test-000000"}
    with pytest.raises(DataError, match="has not been run to its end"):
        StagedDataset(staged, "train")
    path.write_bytes(good)
    assert [p.file for p in stage(dataset) if not p.was_current] == ["train-000001.tar"]
    assert len(StagedDataset(staged, "train")) == 10


def test_damage_after_staging_keeps_what_is_staged(dataset: Path, staged: Path) -> None:
    before = files_of(staged)
    path = dataset / "train-000001.tar"
    good = path.read_bytes()
    path.write_bytes(good[:3000])
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        stage(dataset)
    path.write_bytes(good)
    assert all(p.was_current for p in stage(dataset))
    assert files_of(staged) == before


def test_a_missing_shard(dataset: Path) -> None:
    (dataset / "val-000000.tar").unlink()
    with pytest.raises(
        DataError, match=r"val-000000\.tar is missing: `git checkout data\.dvc && dvc pull --force data`"
    ):
        stage(dataset)


def test_a_readable_shard_with_another_checksum(dataset: Path) -> None:
    path = dataset / "val-000000.tar"
    path.write_bytes(path.read_bytes() + b"\0" * 512)
    with pytest.raises(DataError, match=r"val-000000\.tar is not the file that the manifest lists \(SHA-256"):
        stage(dataset)


def test_an_image_changed_on_disk_is_named(dataset: Path) -> None:
    path = dataset / "val-000000.tar"
    content = bytearray(path.read_bytes())
    start = content.index(b"\x89PNG", content.index(b"val/01.png"))
    content[start + 60 : start + 120] = b"\0" * 60
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'val/01' is not an image that can be read"):
        stage(dataset)


def test_an_unlisted_shard(dataset: Path) -> None:
    (dataset / "train-000007.tar").write_bytes((dataset / "val-000000.tar").read_bytes())
    with pytest.raises(DataError, match=r"train-000007\.tar is not in the manifest: remove it"):
        stage(dataset)


@pytest.mark.parametrize("content", [b"I am a text", b"", b"\x89PNG\r\n\x1a\n"])
def test_a_non_image(dataset: Path, content: bytes) -> None:
    path = dataset / "val-000000.tar"
    members = dict(members_of(path)) | {"val/02.png": content}
    rewrite_tar(path, list(members.items()))
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'val/02' is not an image"):
        stage(dataset)


def test_a_png_with_a_zeroed_end(dataset: Path) -> None:
    """Pillow's load() passes such a file without complaint."""
    path = dataset / "val-000000.tar"
    image = png(0)
    members = dict(members_of(path)) | {"val/02.png": image[: len(image) // 2] + b"\0" * (len(image) // 2)}
    rewrite_tar(path, list(members.items()))
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'val/02' is not an image"):
        stage(dataset)


def test_another_image_size(dataset: Path) -> None:
    path = dataset / "val-000000.tar"
    rewrite_tar(path, [*members_of(path)[:-1], ("val/02.png", png(0, width=9))])
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'val/02' is 9x8, not 8x8; .*--size 8"):
        stage(dataset)


def test_another_dataset_size(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"images of 8 px and data\.image_size is 16: rebuild it with --size 16"):
        stage_dataset(dataset, dataset.parent / "staged", 16)


@pytest.mark.parametrize("again", [2, 6])
def test_a_key_twice_in_a_shard(dataset: Path, again: int) -> None:
    """At once, or later."""
    path = dataset / "val-000000.tar"
    members = members_of(path)
    rewrite_tar(path, [*members[:again], *members[:2], *members[again:]])
    with pytest.raises(DataError, match=r"val-000000\.tar: key 'val/00' appears twice"):
        stage(dataset)


def test_a_shard_that_is_left_out_counts_each_sample_once(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = dataset / "train-000000.tar"
    members = members_of(path)
    rewrite_tar(path, [*members, *members[:2]])
    trust(path)
    n = len(members) // 2
    stage_dataset(dataset, dataset.parent / "staged", SIZE, max_skipped=n)
    assert f"{n} samples were left out, {n} may be" in caplog.text


def test_fewer_samples_than_promised(dataset: Path) -> None:
    path = dataset / "val-000000.tar"
    rewrite_tar(path, members_of(path)[:4])
    with pytest.raises(DataError, match=r"val-000000\.tar holds 2 samples, the manifest says 3"):
        stage(dataset)


def test_a_key_in_two_splits(dataset: Path) -> None:
    path = dataset / "test-000000.tar"
    path.write_bytes((dataset / "val-000000.tar").read_bytes())
    trust(path)
    with pytest.raises(DataError, match=r"key 'val/01' stands in val-000000\.tar and in test-000000\.tar"):
        stage(dataset)


def test_all_problems_are_told_at_once(dataset: Path) -> None:
    (dataset / "val-000000.tar").unlink()
    (dataset / "test-000000.tar").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        stage(dataset)
    assert str(caught.value).startswith("2 problems in ")
    assert "val-000000.tar is missing" in str(caught.value)
    assert "test-000000.tar is damaged" in str(caught.value)
    assert (dataset.parent / "staged/train/train-000001.npy").is_file()


def test_a_full_disk_leaves_nothing_half_written(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, pixels: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging.np, "save", full)
    with pytest.raises(DataError, match=r"train-000000\.npy could not be written: No space left"):
        stage(dataset)
    assert not list((dataset.parent / "staged").rglob("*.*"))


def test_the_staged_manifest_holds_no_times_or_paths(staged: Path) -> None:
    values = json.loads((staged / "manifest.json").read_text())
    assert set(values) == {"name", "image_size", "channels", "class_names", "n_samples", "digests", "shards"}


class TestTolerance:
    """With a budget, what is damaged is left out and counted, and past the budget staging stops."""

    def stage(self, dataset: Path, max_skipped: int) -> StagedDataset:
        stage_dataset(dataset, dataset.parent / "staged", SIZE, max_skipped=max_skipped)
        return StagedDataset(dataset.parent / "staged", "train")

    def damage(self, dataset: Path, name: str) -> None:
        path = dataset / "train-000000.tar"
        if name == "image":
            rewrite_tar(path, list((dict(members_of(path)) | {"train/02.png": b"no image"}).items()))
        elif name == "key":
            members = members_of(path)
            rewrite_tar(path, [*members[:-2], *members[:2]])
        elif name == "checksum":
            path.write_bytes(path.read_bytes() + b"\0" * 512)
        elif name == "cut":
            path.write_bytes(path.read_bytes()[:3000])
        else:
            path.unlink()

    @pytest.mark.parametrize(("name", "lost"), [("image", 1), ("key", 1), ("checksum", 5), ("cut", 5), ("missing", 5)])
    def test_what_is_damaged_is_left_out(
        self, dataset: Path, caplog: pytest.LogCaptureFixture, name: str, lost: int
    ) -> None:
        self.damage(dataset, name)
        with pytest.raises(DataError, match=r"train-000000\.tar"):
            self.stage(dataset, lost - 1)
        assert len(self.stage(dataset, lost)) == 10 - lost
        assert f"{lost} samples were left out, {lost} may be" in caplog.text
        with pytest.raises(DataError, match=r"train-000000\.tar"):
            self.stage(dataset, 0)

    def test_keys_that_leak_between_splits_are_never_tolerated(self, dataset: Path) -> None:
        path = dataset / "test-000000.tar"
        path.write_bytes((dataset / "val-000000.tar").read_bytes())
        trust(path)
        with pytest.raises(DataError, match="stands in"):
            self.stage(dataset, 100)


def test_a_dataset_may_have_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    shards = write_dataset(tmp_path / "shards", shard_images=1, counts=(60, 1, 1))
    staged = stage_dataset(shards, tmp_path / "staged", SIZE)
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (tmp_path / "last").open("w") as last:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last.fileno() + 30, hard))
        try:
            dataset = StagedDataset(tmp_path / "staged", "train")
            images = dataset.read(range(60))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
    assert len(dataset) == staged.n_samples["train"] == len(images) == 60


def test_keys_are_a_sequence() -> None:
    keys = Keys()
    for shard in (["a", "größer"], [], ["", "c"], ["d"]):
        keys.append(shard)
    assert list(keys) == ["a", "größer", "", "c", "d"]
    assert (keys[-1], keys[1:3], keys.index("c"), len(keys)) == ("d", ["größer", ""], 3, 5)
    with pytest.raises(IndexError):
        keys[5]
