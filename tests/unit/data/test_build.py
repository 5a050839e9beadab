import io
import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from noise_data import SIZE, png
from PIL import Image
from test_sources import make_folder

from invfusion.data import StagedDataset
from invfusion.data.build import Account, BuildConfig, build_dataset, scratch_folders, split_of
from invfusion.data.manifest import Manifest, read_manifest
from invfusion.data.shards import read_shard
from invfusion.data.sources.folder import Folder
from invfusion.data.sources.shards import Shards
from invfusion.data.staging import stage_dataset
from invfusion.errors import DataError

CONFIG = BuildConfig(name="mine", image_size=SIZE, shard_images=4)
SKIP = CONFIG.model_copy(update={"on_error": "skip"})
PATHS = [f"{name}/{i:02d}.png" for name in "ab" for i in range(10)]


def build(folder: Path, output: Path, config: BuildConfig = CONFIG) -> tuple[Manifest, Account]:
    return build_dataset(Folder(path=folder, labels=True).open(), output, config)


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


def test_crops_are_pieces_of_their_picture_and_stay_in_its_split(tmp_path: Path) -> None:
    pictures = {f"{i}": np.random.default_rng(i).integers(256, size=(30, 40, 3), dtype=np.uint8) for i in range(8)}
    (tmp_path / "images").mkdir()
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
    config = BuildConfig(name="pieces", image_size=8, crops=3)
    manifest, account = build_dataset(Folder(path=tmp_path / "images").open(), tmp_path / "out", config)
    assert str(account) == "8 entries: 8 read, 0 skipped"
    assert manifest.resize == "none: 3 squares of each at its own resolution"
    for entry in manifest.shards:
        for sample in read_shard(tmp_path / "out" / entry.file):
            picture, _, number = sample.key.partition("-")
            assert split_of(picture) == entry.split
            assert number in ("0000", "0001", "0002")
            windows = np.lib.stride_tricks.sliding_window_view(pictures[picture], (8, 8, 3)).reshape(-1, 8, 8, 3)
            piece = np.asarray(Image.open(io.BytesIO(sample.image)))
            assert (windows == piece).all(axis=(1, 2, 3)).any()
    assert sum(manifest.n_samples.values()) == 24


def test_a_picture_too_small_for_crops_gives_its_middle(folder: Path, tmp_path: Path) -> None:
    manifest, _ = build(folder, tmp_path / "out", CONFIG.model_copy(update={"image_size": 64, "crops": 3}))
    assert sum(manifest.n_samples.values()) == manifest.n_enlarged == 20


@pytest.mark.parametrize("workers", [1, 3])
def test_building_again_gives_the_same_bytes(folder: Path, tmp_path: Path, workers: int) -> None:
    build(folder, tmp_path / "out")
    first = bytes_of(tmp_path / "out")
    build(folder, tmp_path / "out", CONFIG.model_copy(update={"workers": workers}))
    assert bytes_of(tmp_path / "out") == first
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out"}


def test_shards_of_shards_are_the_same_dataset(dataset: Path, tmp_path: Path) -> None:
    config = BuildConfig(name="noise", image_size=SIZE)
    build_dataset(Shards(path=dataset).open(), tmp_path / "again", config)
    for name, shards in [("one", dataset), ("two", tmp_path / "again")]:
        stage_dataset(shards, tmp_path / name, SIZE)
    one, two = (StagedDataset(tmp_path / name, "train") for name in ("one", "two"))
    assert list(one.keys) == list(two.keys)
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
    listing = Folder(path=tmp_path / "images").open()
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


@pytest.mark.parametrize("suffix", [".old", ".partial", ".building", ".new", "-1"])
def test_neighbours_are_left_alone(folder: Path, tmp_path: Path, suffix: str) -> None:
    for name in (f"out{suffix}", f".out{suffix}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years of work")
    build(folder, tmp_path / "out")
    build(folder, tmp_path / "out")
    assert all((tmp_path / name / "thesis.tex").exists() for name in (f"out{suffix}", f".out{suffix}"))


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_as_output_is_followed(folder: Path, tmp_path: Path, exists: bool) -> None:
    disk = tmp_path / "disk" / "set"
    if exists:
        disk.mkdir(parents=True)
    (tmp_path / "out").symlink_to(disk)
    for _ in range(2):
        build(folder, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert read_manifest(disk) == read_manifest(tmp_path / "out")
    assert [path.name for path in disk.parent.iterdir()] == ["set"]


def test_links_in_a_circle_and_files_are_no_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match="out could not be written"):
        build(folder, tmp_path / "out")
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(DataError, match="file exists and is not a dataset"):
        build(folder, tmp_path / "file")
    with pytest.raises(DataError, match=r"file/out could not be written"):
        build(folder, tmp_path / "file" / "out")


def test_the_root_of_a_disk_is_no_output(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "disk")
    (tmp_path / "disk").mkdir()
    with pytest.raises(DataError, match=r"disk is the root of a disk .*choose a folder on it"):
        build(folder, tmp_path / "disk")


def test_a_tar_that_the_manifest_does_not_list_is_kept(folder: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    (tmp_path / "out" / "backup.tar").write_bytes(b"years of work")
    with pytest.raises(DataError, match="out exists and is not a dataset"):
        build(folder, tmp_path / "out")


def build_and_die(folder: Path, output: Path, step: int) -> int:
    """Build in a process of its own that is killed before its rename number `step`; returns its exit code."""
    process = os.fork()
    if not process:
        try:
            left, rename = itertools.count(1), Path.rename

            def dying(path: Path, to: Path) -> Path:
                if next(left) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return rename(path, to)

            Path.rename = dying  # type: ignore[method-assign, assignment]
            build_dataset(Folder(path=folder).open(), output, BuildConfig(name="mine", image_size=8))
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_between_loses_nothing(folder: Path, tmp_path: Path, step: int) -> None:
    build(folder, tmp_path / "out")
    first = bytes_of(tmp_path / "out")
    assert build_and_die(folder, tmp_path / "out", step) == -signal.SIGKILL
    (scratch,) = scratch_folders(tmp_path / "out")
    assert bytes_of(tmp_path / "out" if step == 1 else scratch / "earlier") == first
    build(folder, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == first
    assert scratch_folders(tmp_path / "out") == [scratch]


def test_a_place_that_was_taken_meanwhile_is_kept_and_so_is_the_work(folder: Path, tmp_path: Path) -> None:
    def write() -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "thesis.tex").write_text("years of work")

    with pytest.raises(DataError, match=r"is not a dataset.*; the new dataset is complete and lies in (.*)") as raised:
        build_dataset(Folder(path=folder).open(), tmp_path / "out", CONFIG, on_image=write)
    assert (tmp_path / "out" / "thesis.tex").exists()
    assert sum(read_manifest(Path(str(raised.value).split(" lies in ")[1])).n_samples.values()) == 20


def test_with_skip_nothing_in_a_folder_stops_the_build(folder: Path, tmp_path: Path) -> None:
    (folder / "a" / "03.jpg").write_bytes(png(5))
    (folder / "a" / "text.png").write_text("hello")
    (folder / ".DS_Store").write_text("")
    (folder / "a" / "dangling.png").symlink_to("nowhere")
    (folder / "a" / "itself.png").symlink_to("itself.png")
    (folder / "b" / "again").symlink_to("../a")
    (folder / "b" / "up").symlink_to("..")
    os.mkfifo(folder / "b" / "pipe.png")
    (folder / "b" / os.fsdecode(b"M\xfcller.png")).write_bytes(png(6))
    (folder / "b" / f"{'x' * 200}.png").write_bytes(png(7))
    (folder / "b" / "unreadable.png").symlink_to("/proc/self/mem")
    (folder / "c").symlink_to(make_folder(tmp_path / "elsewhere", ["1.png", "2.png"]))
    manifest, account = build(folder, tmp_path / "out", SKIP)
    assert account.n_read == sum(manifest.n_samples.values()) == 24
    assert manifest.n_skipped == account.n_skipped == 9
    assert account.skipped == {
        "a dangling link": 1,
        "a link that cannot be followed (Too many levels of symbolic links)": 1,
        "a link to a folder that is read already": 2,
        "no regular file": 1,
        "cannot be opened": 1,
        "hidden": 1,
        "no known format": 1,
        "a key that another image has": 1,
    }
    assert len(account.problems) == 8
    keys = {sample.key for entry in manifest.shards for sample in read_shard(tmp_path / "out" / entry.file)}
    assert {"b/M%FCller", "c/1", f"b/{'x' * 200}"} < keys


def test_what_is_known_to_be_unreadable_stops_before_the_work(folder: Path, tmp_path: Path) -> None:
    (folder / "b" / "dangling.png").symlink_to("nowhere")
    done: list[int] = []
    with pytest.raises(DataError, match=r"'b/dangling\.png' cannot be read: a dangling link; .*--on-error skip"):
        build_dataset(Folder(path=folder).open(), tmp_path / "out", CONFIG, on_image=lambda: done.append(1))
    assert done == []


def test_other_files_are_never_replaced(folder: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "out")
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="out exists and is not a dataset"):
        build(folder, tmp_path / "out")


def test_enlarged_images_are_counted(folder: Path, tmp_path: Path) -> None:
    manifest, _ = build(folder, tmp_path / "out", CONFIG.model_copy(update={"image_size": 16}))
    assert manifest.n_enlarged == 20
