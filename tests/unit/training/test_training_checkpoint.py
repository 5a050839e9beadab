"""Training state on disk: whole or not at all, and never another run's."""

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from invfusion.errors import CheckpointError
from invfusion.training import checkpoint
from invfusion.training.loop import LOG

TENSORS = {"a": torch.arange(3.0), "step": torch.tensor(2.0)}


def save(folder: Path, nimg: int, fingerprint: str = "task") -> Path:
    return checkpoint.save(folder, nimg, TENSORS, {"nimg": nimg, "fingerprint": fingerprint})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> int | None:
    found = checkpoint.load_newest(folder)
    return None if found is None else found[1]["nimg"]


def test_round_trip(tmp_path: Path) -> None:
    save(tmp_path, 10)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    tensors, state = found
    assert state == {"nimg": 10, "fingerprint": "task"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for nimg in (10, 20, 30):
        save(tmp_path, nimg)
    assert names(tmp_path) == ["checkpoint-000000000020", "checkpoint-000000000030"]


def test_nothing_there(tmp_path: Path) -> None:
    checkpoint.prepare(tmp_path, "task", 100)
    assert checkpoint.load_newest(tmp_path) is None


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty object"])
def test_a_damaged_checkpoint_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    save(tmp_path, 10)
    broken = save(tmp_path, 20) / name
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    changes = {"cut": bytes(content)[: len(content) // 2], "flip": bytes(content), "empty object": b"{}"}
    broken.write_bytes(changes[damage]) if damage in changes else broken.unlink()
    checkpoint.prepare(tmp_path, "task", 100)
    assert newest(tmp_path) == 10
    assert "checkpoint-000000000020 is damaged" in caplog.text


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    tiny.run(tmp_path)
    whole, curve = tiny.files(tmp_path), tiny.curve(tmp_path)
    (tmp_path / "state" / "checkpoint-000000000096" / checkpoint.TENSORS).write_bytes(b"torn")
    tiny.run(tmp_path)
    assert tiny.files(tmp_path) == whole
    assert tiny.curve(tmp_path) == curve


def test_what_a_kill_during_saving_leaves_behind_is_no_checkpoint(tmp_path: Path) -> None:
    partial = save(tmp_path, 10).rename(tmp_path / ".checkpoint-000000000010.partial")
    assert checkpoint.load_newest(tmp_path) is None
    save(tmp_path, 10)
    assert not partial.exists()
    assert newest(tmp_path) == 10


def no_space(tensors: dict[str, Any], path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


class TestFullDisk:
    def test_saving_says_so_and_leaves_no_rubbish(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checkpoint, "save_file", no_space)
        with pytest.raises(CheckpointError, match=r"No space left on device.*free some space"):
            save(tmp_path, 20)
        assert names(tmp_path) == []

    def test_training_stops_and_the_previous_checkpoint_survives(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny.run(tmp_path, tiny.task(images=48))
        before = tiny.files(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_file", no_space)
            with pytest.raises(CheckpointError, match="intact"):
                tiny.run(tmp_path)
        assert tiny.files(tmp_path) == before
        assert tiny.run(tmp_path) is not None


class TestOtherRuns:
    def test_the_state_of_other_parameters_is_not_continued(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        save(tmp_path, 20, "old")
        checkpoint.prepare(tmp_path, "new", 100)
        assert checkpoint.load_newest(tmp_path) is None
        assert "other parameters or data: it is set aside" in caplog.text

    def test_going_back_finds_the_old_state(self, tmp_path: Path) -> None:
        save(tmp_path, 20, "old")
        (tmp_path / LOG).write_text("old\n")
        checkpoint.prepare(tmp_path, "new", 100, companions=(LOG,))
        assert not (tmp_path / LOG).exists()
        save(tmp_path, 10, "new")
        checkpoint.prepare(tmp_path, "old", 100, companions=(LOG,))
        assert newest(tmp_path) == 20
        assert (tmp_path / LOG).read_text() == "old\n"
        checkpoint.prepare(tmp_path, "new", 100, companions=(LOG,))
        assert newest(tmp_path) == 10

    def test_only_one_other_run_is_kept(self, tmp_path: Path) -> None:
        for fingerprint in ("first", "second", "third"):
            checkpoint.prepare(tmp_path, fingerprint, 100)
            save(tmp_path, 10, fingerprint)
        aside = tmp_path / checkpoint.ASIDE / "checkpoint-000000000010" / checkpoint.STATE
        assert json.loads(aside.read_text())["fingerprint"] == "second"
        assert names(tmp_path) == ["checkpoint-000000000010", checkpoint.ASIDE]

    def test_a_shorter_run_does_not_take_a_longer_ones_state(self, tmp_path: Path) -> None:
        save(tmp_path, 50)
        checkpoint.prepare(tmp_path, "task", 40)
        assert checkpoint.load_newest(tmp_path) is None

    def test_training_begins_afresh_with_other_parameters(self, tmp_path: Path) -> None:
        tiny.run(tmp_path, tiny.task(images=40, fingerprint="one"))
        tiny.run(tmp_path, tiny.task(images=40, lr=2e-3, fingerprint="two"))
        reference = tmp_path / "reference"
        tiny.run(reference, tiny.task(images=40, lr=2e-3, fingerprint="two"))
        assert tiny.files(tmp_path) == tiny.files(reference)
        assert tiny.curve(tmp_path) == tiny.curve(reference)
        shutil.rmtree(reference)
