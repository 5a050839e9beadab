import zipfile
from pathlib import Path

import numpy as np
import pytest
from noise_data import png

from invfusion.data.names import key_of, parts_of
from invfusion.data.sources import SOURCES, Listing, SourceImage
from invfusion.data.sources.base import Skipped
from invfusion.data.sources.digits import DigitsConfig, colours, draw
from invfusion.data.sources.files import Arrangement, Entry
from invfusion.data.sources.files import arrange as arrange_entries
from invfusion.data.sources.folder import FolderConfig
from invfusion.data.sources.shards import ShardsConfig
from invfusion.data.sources.zip import ZipConfig
from invfusion.errors import DataError

PATHS = ["b/2.png", "a/1.JPG", "a/x.y.png", ".DS_Store", "__MACOSX/a/1.JPG", "a/.hidden.png"]


def make_folder(folder: Path, paths: list[str]) -> Path:
    for i, path in enumerate(paths):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(i))
    return folder


def make_zip(path: Path, paths: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(paths):
            archive.writestr(name, png(i))
    return path


def arrange(names: list[str], labels: bool = False) -> Arrangement:
    return arrange_entries([Entry(name) for name in names], labels, "s")


def divide(listing: Listing) -> tuple[list[SourceImage], list[Skipped]]:
    items = list(listing.images)
    return [i for i in items if isinstance(i, SourceImage)], [i for i in items if isinstance(i, Skipped)]


def read(listing: Listing) -> list[SourceImage]:
    return divide(listing)[0]


def summary(images: list[SourceImage]) -> list[tuple[object, ...]]:
    return [(image.key, image.label, image.split, image.content) for image in images]


def test_folder_and_zip_read_alike(tmp_path: Path) -> None:
    folder = FolderConfig(path=make_folder(tmp_path / "f", PATHS), labels=True).open()
    archive = ZipConfig(path=make_zip(tmp_path / "f.zip", PATHS), labels=True).open()
    (images, skipped), (zipped, also_skipped) = divide(folder), divide(archive)
    assert summary(images) == summary(zipped)
    assert skipped == also_skipped == [Skipped("hidden")] * 3
    assert [image.key for image in images] == ["a/1", "a/x%2Ey", "b/2"]
    assert [image.label for image in images] == [0, 0, 1]
    assert folder.class_names == archive.class_names == ("a", "b")
    assert folder.n_images == archive.n_images == 6
    assert images[0].origin.endswith("a/1.JPG")


def test_split_folders_win_over_the_hash() -> None:
    found = arrange(["train/cat/1.png", "Validation/dog/2.png", "test/cat/3.png"], True)
    assert [(e.split, e.label) for e in found.files] == [("val", 1), ("test", 0), ("train", 0)]
    assert found.class_names == ("cat", "dog")
    assert [e.key for e in found.files] == ["Validation/dog/2", "test/cat/3", "train/cat/1"]


def test_without_labels_folders_are_just_names() -> None:
    found = arrange(["00000/1.png", "2.png"])
    assert [(e.key, e.label, e.split) for e in found.files] == [("00000/1", None, None), ("2", None, None)]
    assert found.class_names == ()


def test_what_lies_outside_the_folders_is_named() -> None:
    (stray,) = arrange(["train/1.png", "2.png"]).skipped
    assert "'2.png' lies outside the split folders; put all images" in stray.problem
    (stray,) = arrange(["a/1.png", "b/1.png", "2.png"], True).skipped
    assert "'2.png' lies in no class folder" in stray.problem


@pytest.mark.parametrize(
    ("path", "key"), [("a.b/c.png", "a.b/c"), ("a/c.d.e.png", "a/c%2Ed%2Ee"), ("ä b.png", "ä b"), ("noext", "noext")]
)
def test_keys_survive_a_tar(path: str, key: str) -> None:
    assert key_of(parts_of(path)) == key


@pytest.mark.parametrize("kind", ["folder", "zip", "shards"])
def test_a_missing_path_is_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="nowhere"):
        SOURCES[kind](path=tmp_path / "nowhere").open()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        FolderConfig(path=tmp_path).open()


def test_a_broken_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"a\.zip is not a zip"):
        ZipConfig(path=tmp_path / "a.zip").open()


def test_a_damaged_zip_member_is_no_image(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["1.png", "2.png"])
    content = bytearray(path.read_bytes())
    content[content.index(b"\x89PNG") + 60] ^= 255
    path.write_bytes(content)
    (second,), (first,) = divide(ZipConfig(path=path).open())
    assert second.open().size == (8, 8)
    assert first.reason == "damaged in the zip"
    assert "a.zip: 1.png cannot be read" in first.problem


def test_shards_keep_keys_labels_and_splits(dataset: Path) -> None:
    listing = ShardsConfig(path=dataset).open()
    images = read(listing)
    assert (listing.n_images, listing.class_names) == (16, ("even", "odd"))
    assert {image.split for image in images} == {"train", "val", "test"}
    assert summary(images)[0] == ("test/00", 0, "test", png(2000))


def test_a_single_tar_of_any_name(dataset: Path, tmp_path: Path) -> None:
    (dataset / "val-000000.tar").rename(tmp_path / "faces.tar")
    listing = ShardsConfig(path=tmp_path / "faces.tar").open()
    assert [image.split for image in listing.images] == ["val"] * 3  # by its keys' folder


def test_shards_half_named_by_split_are_refused(dataset: Path) -> None:
    (dataset / "val-000000.tar").rename(dataset / "faces.tar")
    with pytest.raises(DataError, match=r"faces\.tar is not; name all or none"):
        ShardsConfig(path=dataset).open()


def test_colours_have_contrast_and_variety() -> None:
    pairs = [colours(f"digit{i:04d}") for i in range(300)]
    grey = np.array([[np.dot(colour, (0.299, 0.587, 0.114)) for colour in pair] for pair in pairs])
    assert abs(grey[:, 0] - grey[:, 1]).min() > 20
    assert 0.4 < np.mean(grey[:, 0] < grey[:, 1]) < 0.6
    assert len(set(pairs)) == 300


def test_ink_and_paper_are_reached() -> None:
    image = np.zeros((8, 8))
    image[:, 4:] = 16
    drawn = np.asarray(draw(image, (10, 20, 30), (200, 100, 50)))
    assert drawn[32, 0].tolist() == [10, 20, 30]
    assert drawn[32, -1].tolist() == [200, 100, 50]
    assert drawn.min() >= 10
    assert drawn.max() <= 200


def test_all_digits_are_there() -> None:
    pytest.importorskip("sklearn")
    listing = DigitsConfig().open()
    first = next(iter(listing.images))
    assert (listing.n_images, len(listing.class_names)) == (1797, 10)
    assert (first.key, first.label, first.split) == ("digit0000", 0, None)
