"""Whatever a source's folders look like, no image lands in a split or class that its folders do not say."""

import pytest

from invfusion.data.sources.files import Arrangement, Entry, arrange
from invfusion.errors import DataError


def found(names: list[str], labels: bool = False) -> Arrangement:
    return arrange([Entry(name) for name in names], labels, "it")


def splits(names: list[str]) -> dict[str, str | None]:
    return {file.key: file.split for file in found(names).files}


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.png", "test/2.png"],
        ["Train/1.png", "TEST/2.png"],
        ["training/1.png", "testing/2.png"],
        ["train\\1.png", "test\\2.png"],
        [".\\train\\1.png", "./test/2.png"],
        ["pets/train/cat/1.png", "pets/test/cat/2.png"],
        ["pets\\v2\\Train\\1.png", "pets\\v2\\Test\\2.png"],
        ["__MACOSX/._1.png", "pets/.DS_Store", "pets/train/1.png", "pets/test/2.png"],
        ["ｔｒａｉｎ/1.png", " test/2.png"],
    ],
)
def test_split_folders_are_found(names: list[str]) -> None:
    assert sorted(map(str, splits(names).values())) == ["test", "train"]


@pytest.mark.parametrize(
    "names",
    [
        ["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"],
        ["cat/test/1.png", "dog/2.png"],
        ["images/train/1.png", "labels/train/1.png", "images/val/2.png"],
        ["train2017/1.png", "val2017/2.png"],
        ["trainA/1.png", "testA/2.png"],
        ["train_images/1.png", "test_images/2.png"],
        ["a/imagenet-train/1.png", "a/imagenet-val/2.png"],
        ["test/train/1.png", "test/val/2.png"],
    ],
)
def test_splits_elsewhere_are_refused(names: list[str]) -> None:
    with pytest.raises(
        DataError, match=r"^it: .*(look.* like split|looks like a split|named as a split).*holds just these"
    ):
        found(names)


@pytest.mark.parametrize(
    "names", [["holidays/train rides/1.png", "home/2.png"], ["cars/1.png", "vehicles/train/2.png"]]
)
def test_a_name_that_may_be_no_split_is_a_warning(names: list[str]) -> None:
    arranged = found(names)
    assert [file.split for file in arranged.files] == [None, None]
    assert len(arranged.warnings) == 1
    assert "train" in arranged.warnings[0]


def test_photographs_are_no_splits() -> None:
    names = ["2019/Trainers/1.png", "2020/contest/2.png", "2020/validators.png"]
    assert found(names).warnings == ()


def test_a_class_may_be_named_like_a_split_below_one() -> None:
    arranged = found(["train/train/1.png", "train/car/2.png", "val/train/3.png"], labels=True)
    assert arranged.class_names == ("car", "train")
    assert [(file.split, file.label) for file in arranged.files] == [("train", 0), ("train", 1), ("val", 1)]


@pytest.mark.parametrize(
    "names",
    [
        ["pets/cat/1.png", "pets/dog/2.png"],
        ["train/images/cat/1.png", "test/images/dog/2.png"],
        ["pets\\cat\\1.png", "pets\\dog\\2.png"],
    ],
)
def test_folders_that_hold_everything_are_no_classes(names: list[str]) -> None:
    arranged = found(names, labels=True)
    assert arranged.class_names == ("cat", "dog")
    assert "the classes are the folders below" in arranged.warnings[0]


@pytest.mark.parametrize("names", [["pets/1.png", "pets/2.png"], ["train/cat/1.png", "test/cat/2.png"], ["1.png"]])
def test_one_class_for_everything_is_refused(names: list[str]) -> None:
    with pytest.raises(DataError, match=r"(of one class|in no class folder).*leave --labels out"):
        found(names, labels=True)


def test_one_class_in_two_normal_forms() -> None:
    arranged = found(["train/cafe\u0301/1.png", "test/caf\xe9/2.png", "test/bar/3.png"], labels=True)
    assert arranged.class_names == ("bar", "caf\xe9")
    assert {file.key for file in arranged.files} == {"train/caf\xe9/1", "test/caf\xe9/2", "test/bar/3"}


@pytest.mark.parametrize(
    "name", ["../1.png", "a/../../1.png", "/etc/1.png", "C:\\photos\\1.png", "\\\\host\\1.png", "..\\1.png"]
)
def test_names_that_leave_the_source_are_no_entries_to_read(name: str) -> None:
    arranged = found([name, "2.png"])
    assert [file.key for file in arranged.files] == ["2"]
    assert [skipped.reason for skipped in arranged.skipped] == ["its name points out of its folder"]
    assert name in arranged.skipped[0].problem


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("M\udcfcller.png", "M%FCller"),
        ("__meta__/a.png", "%5F_meta__/a"),
        ("a\nb.png", "a%0Ab"),
        (f"{'x' * 300}.png", "x" * 300),
    ],
)
def test_every_name_gives_a_key(name: str, key: str) -> None:
    assert list(splits([name])) == [key]
