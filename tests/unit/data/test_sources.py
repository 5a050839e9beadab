import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from noise_data import png

from invfusion.data.names import key_of, parts_of
from invfusion.data.sources import SOURCES, Listing, SourceImage
from invfusion.data.sources.base import Skipped
from invfusion.data.sources.digits import Digits, colours, draw
from invfusion.data.sources.files import Arrangement, Entry
from invfusion.data.sources.files import arrange as arrange_entries
from invfusion.data.sources.folder import Folder
from invfusion.data.sources.shards import Shards
from invfusion.data.sources.zip import Zip
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
    folder = Folder(path=make_folder(tmp_path / "f", PATHS), labels=True).open()
    archive = Zip(path=make_zip(tmp_path / "f.zip", PATHS), labels=True).open()
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
        Folder(path=tmp_path).open()


def test_a_broken_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"a\.zip is not a zip"):
        Zip(path=tmp_path / "a.zip").open()


def test_a_damaged_zip_member_is_no_image(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["1.png", "2.png"])
    content = bytearray(path.read_bytes())
    content[content.index(b"\x89PNG") + 60] ^= 255
    path.write_bytes(content)
    (second,), (first,) = divide(Zip(path=path).open())
    assert second.open().size == (8, 8)
    assert first.reason == "damaged in the zip"
    assert "a.zip: 1.png cannot be read" in first.problem


def test_every_member_of_a_zip_is_accounted_for(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "a.zip", ["encrypted.png", "deflate64.png", "good.png", "../up.png", "/root.png", "x\\y.png"]
    )
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "good.png")
        archive.writestr("folder/", "")
        archive.writestr("folder\\", "")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("good.png", png(9))
    content = bytearray(path.read_bytes())
    for name, local, central, value in [(b"encrypted.png", 6, 8, 1), (b"deflate64.png", 8, 10, 9)]:
        content[content.index(name) - 30 + local] |= value
        content[content.rindex(name) - 46 + central] |= value
    path.write_bytes(content)
    listing = Zip(path=path).open()
    images, skipped = divide(listing)
    assert [image.key for image in images] == ["good", "good", "x/y"]
    assert images[0].content != images[1].content
    assert sorted(item.reason for item in skipped) == [
        "a link",
        "compressed in a way that cannot be read here; zip it anew",
        "encrypted",
        *["its name points out of its folder"] * 2,
    ]
    assert listing.n_images == len(images) + len(skipped) == 8


def test_a_zip_whose_names_are_not_what_it_says(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", ["Mü.png", "b.png"])
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xff\xfe"))
    with pytest.raises(DataError, match=r"a\.zip is not a zip that can be read: .*utf-8"):
        Zip(path=path).open()


def make_tar(path: Path, keys: list[str], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for i, key in enumerate(keys):
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(png(i))
            archive.addfile(info, io.BytesIO(png(i)))
    return path


def test_compressed_tars_lie_beside_others(tmp_path: Path) -> None:
    for name, mode in [
        ("a.tar", "w"),
        ("b.tar.gz", "w:gz"),
        ("c.TGZ", "w:gz"),
        ("d.tar.xz", "w:xz"),
        ("e.tar.bz2", "w:bz2"),
    ]:
        make_tar(tmp_path / name, [name[0]], mode)
    (tmp_path / "f.tar.zst").write_bytes(b"(\xb5/\xfd")
    (tmp_path / "sizes.json").write_text("{}")
    images, skipped = divide(Shards(path=tmp_path).open())
    assert [image.key for image in images] == ["a", "b", "c", "d", "e"]
    assert [item.reason for item in skipped] == ["no tar", "a damaged tar"]
    assert "f.tar.zst is damaged or cut short after the beginning" in skipped[1].problem


@pytest.mark.parametrize(
    "tars",
    [
        {"train-0.tar": ["1"], "test-0.tar": ["2"]},
        {"train0000.tar": ["1"], "TEST0000.tar.gz": ["2"]},
        {"train/0.tar": ["1"], "Test/0.tar": ["2"]},
        {"sets/training/0.tar": ["1"], "sets/testing/0.tar": ["2"]},
        {"photos.tar": ["train/1", "test/2"]},
        {"photos.tar": ["./train\\1", "./test\\2"]},
    ],
)
def test_splits_of_tars_are_found(tmp_path: Path, tars: dict[str, list[str]]) -> None:
    for name, keys in tars.items():
        make_tar(tmp_path / "tars" / name, keys)
    images = read(Shards(path=tmp_path / "tars").open())
    assert {image.key[-1]: image.split for image in images} == {"1": "train", "2": "test"}


@pytest.mark.parametrize(
    ("tars", "message"),
    [
        ({"imagenet-train-0.tar": ["1"], "imagenet-val-0.tar": ["2"]}, "look like splits and are not named so"),
        ({"a.tar": ["pets/train/1", "pets/test/2"]}, "looks like a split and is not the first"),
        ({"a.tar": ["train/1", "2"]}, "some keys lie in a split folder and some do not"),
        ({"a.tar": ["train/1"], "b.tar": ["2"]}, "some keys lie in a split folder and some do not"),
        ({"test/train-0.tar": ["1"]}, "is named by several splits"),
    ],
)
def test_splits_of_tars_elsewhere_are_refused(tmp_path: Path, tars: dict[str, list[str]], message: str) -> None:
    for name, keys in tars.items():
        make_tar(tmp_path / "tars" / name, keys)
    with pytest.raises(DataError, match=message):
        list(Shards(path=tmp_path / "tars").open().images)


def test_shards_keep_keys_labels_and_splits(dataset: Path) -> None:
    listing = Shards(path=dataset).open()
    images = read(listing)
    assert (listing.n_images, listing.class_names) == (16, ("even", "odd"))
    assert {image.split for image in images} == {"train", "val", "test"}
    assert summary(images)[0] == ("test/00", 0, "test", png(2000))


def test_a_single_tar_of_any_name(dataset: Path, tmp_path: Path) -> None:
    (dataset / "val-000000.tar").rename(tmp_path / "faces.tar")
    listing = Shards(path=tmp_path / "faces.tar").open()
    assert [image.split for image in listing.images] == ["val"] * 3  # by its keys' folder


def test_shards_half_named_by_split_are_refused(dataset: Path) -> None:
    (dataset / "val-000000.tar").rename(dataset / "faces.tar")
    with pytest.raises(DataError, match=r"faces\.tar is not; name all or none"):
        Shards(path=dataset).open()


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
    listing = Digits().open()
    first = next(iter(listing.images))
    assert (listing.n_images, len(listing.class_names)) == (1797, 10)
    assert (first.key, first.label, first.split) == ("digit0000", 0, None)
