"""Damaged checkpoints, disks without space and damaged shards, each at random places: named, and nothing is lost."""

import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from noise_data import SIZE, members_of, rewrite_tar, write_dataset
from test_resume import StopAt

from invfusion.data import StagedDataset
from invfusion.data.staging import stage_dataset
from invfusion.errors import CheckpointError, DataError
from invfusion.training import checkpoint


def tries(full: bool) -> int:
    return 20 if full else 2


def result(folder: Path) -> tuple[Any, Any]:
    return tiny.files(folder), tiny.curve(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.run(folder)
    return result(folder)


def stopped(folder: Path, draw: random.Random) -> Path:
    """A run that was asked to end after a few of its twelve steps, with two checkpoints; returns the newer one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    assert tiny.run(folder, should_stop=StopAt(draw.randint(4, 11))) is None
    return max((folder / "state").glob("checkpoint-*"))


def cut_file(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def remove_file(path: Path, draw: random.Random) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("what", "damage"), [("cut short", cut_file), ("with a flipped bit", flip_bit), ("missing", remove_file)]
)
def test_a_damaged_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, full: bool, note: Any, whole: Any, what: str, damage: Any
) -> None:
    draw = random.Random(what)
    for _ in range(tries(full)):
        newest = stopped(tmp_path / "run", draw)
        damage(newest / draw.choice([checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST]), draw)
        caplog.clear()
        tiny.run(tmp_path / "run")
        assert f"{newest.name} is damaged" in caplog.text
        assert result(tmp_path / "run") == whole
    note(
        f"a file of the newest checkpoint {what}",
        tries(full),
        "nothing: the one before it was used, and the log says so",
    )


@contextmanager
def room_for(n_bytes: int) -> Iterator[None]:
    """The operating system refuses to make any file larger than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_during_a_save(tmp_path: Path, full: bool, note: Any, whole: Any) -> None:
    draw = random.Random("space")
    for _ in range(tries(full)):
        newest = stopped(tmp_path / "run", draw)
        before = result(tmp_path / "run")
        room = draw.randint(4096, (newest / checkpoint.TENSORS).stat().st_size - 1)
        with room_for(room), pytest.raises(CheckpointError, match="free some space"):
            tiny.run(tmp_path / "run")
        assert result(tmp_path / "run")[0] == before[0]
        tiny.run(tmp_path / "run")
        assert result(tmp_path / "run") == whole
    note(
        "a disk that refuses more bytes in the middle of a save",
        tries(full),
        "nothing: the checkpoint before it is intact",
    )


def no_image(path: Path, draw: random.Random) -> str:
    members = dict(members_of(path))
    name = draw.choice([name for name in members if name.endswith(".png")])
    rewrite_tar(path, list((members | {name: members[name][: draw.randint(0, 40)]}).items()))
    return rf"{path.name}: key '{name.removesuffix('.png')}' is not an image"


def key_twice(path: Path, draw: random.Random) -> str:
    members = members_of(path)
    first, second = (2 * i for i in draw.sample(range(len(members) // 2), 2))
    members[second : second + 2] = members[first : first + 2]
    rewrite_tar(path, members)
    return rf"{path.name}: key '{members[first][0].split('.')[0]}' appears twice"


def other_checksum(path: Path, draw: random.Random) -> str:
    path.write_bytes(path.read_bytes() + bytes(512 * draw.randint(1, 4)))
    return rf"{path.name} is not the file that the manifest lists"


def cut_shard(path: Path, draw: random.Random) -> str:
    path.write_bytes(path.read_bytes()[: draw.randint(600, 4000)])
    return path.name


def no_shard(path: Path, draw: random.Random) -> str:
    path.unlink()
    return rf"{path.name} is missing"


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("an image of a shard that cannot be decoded", no_image),
        ("a key twice in a shard", key_twice),
        ("a shard with another checksum", other_checksum),
        ("a shard cut short", cut_shard),
        ("a shard missing", no_shard),
    ],
)
def test_a_damaged_shard(
    tmp_path: Path, full: bool, note: Any, what: str, damage: Callable[[Path, random.Random], str]
) -> None:
    draw = random.Random(what)
    for number in range(tries(full)):
        folder = tmp_path / str(number)
        folder.mkdir()
        dataset, staged = write_dataset(folder / "noise"), folder / "staged"
        message = damage(dataset / f"train-00000{draw.randrange(2)}.tar", draw)
        with pytest.raises(DataError, match=message):
            stage_dataset(dataset, staged, SIZE)
        with pytest.raises(DataError, match="has not been run to its end"):
            StagedDataset(staged, "train")
        kept = tolerated(dataset, staged)
        assert 5 <= kept < 10
        with pytest.raises(DataError, match=message):
            stage_dataset(dataset, staged, SIZE, max_skipped=10 - kept - 1)
    note(what, tries(full), "nothing: named before training; a budget leaves out what it affects, and stops beyond")


def tolerated(dataset: Path, staged: Path) -> int:
    """How many images are left where all damage is tolerated."""
    stage_dataset(dataset, staged, SIZE, max_skipped=10)
    return len(StagedDataset(staged, "train"))
