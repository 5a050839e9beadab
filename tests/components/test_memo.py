"""What was computed is found again by what it was made from, whole or not at all."""

import os
import time
from pathlib import Path

import pytest
import torch

from components import memo as module
from components.memo import Memo, identity
from invfusion.errors import DataError
from invfusion.locks import locked


def made(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.full((2,), value), "y": torch.zeros(1)}


def never() -> dict[str, torch.Tensor]:
    raise AssertionError("computed again")


def test_equal_facts_are_computed_once(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    assert torch.equal(memo.tensors({"a": 1, "b": [2]}, lambda: made(3))["x"], torch.full((2,), 3.0))
    again = Memo(tmp_path).tensors({"b": (2,), "a": 1}, never)
    assert torch.equal(again["x"], torch.full((2,), 3.0))
    assert (
        memo.data({"a": 1, "b": [2]}, lambda: [1, None]) == Memo(tmp_path).data({"a": 1, "b": [2]}, never) == [1, None]
    )
    assert list(memo.stored({"a": 1, "b": [2]}, ["x", "z"])) == ["x"]


def test_other_facts_are_another_entry(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    for value in (1, 2):
        memo.tensors({"a": value}, lambda value=value: made(value))
    assert [float(memo.stored({"a": value})["x"][0]) for value in (1, 2)] == [1, 2]
    assert memo.used == {identity({"a": 1}), identity({"a": 2})}


@pytest.mark.parametrize("damage", [b"", b"half a file"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    memo = Memo(tmp_path)
    memo.tensors({"a": 1}, lambda: made(1))
    memo.data({"a": 1}, lambda: 1)
    for path in [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.json")]:
        path.write_bytes(damage)
    assert not memo.has({"a": 1})
    with pytest.raises(DataError, match="vanished"):
        memo.stored({"a": 1})
    assert float(memo.tensors({"a": 1}, lambda: made(2))["x"][0]) == 2
    assert memo.data({"a": 1}, lambda: 2) == 2


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    memo = Memo(tmp_path)
    with pytest.raises(AssertionError):
        memo.tensors({"a": 1}, never)
    assert not memo.has({"a": 1})
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}


def test_an_entry_belongs_to_the_process_that_makes_it(tmp_path: Path) -> None:
    memo, facts = Memo(tmp_path), {"a": 1}
    with locked(tmp_path / f"{identity(facts)}.lock"):
        assert memo.tensors(facts, never, wait=False) is None
    assert memo.tensors(facts, lambda: made(1), wait=False) is not None


def test_what_nobody_uses_any_more_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, evaluation = Memo(tmp_path), Memo(tmp_path)
    for name, memo in (("shared", table), ("shared", evaluation), ("table", table), ("evaluation", evaluation)):
        memo.tensors({"for": name}, lambda: made(1))
    table.forget_unused("table")
    evaluation.forget_unused("evaluation")
    assert all(table.has({"for": name}) for name in ("shared", "table", "evaluation")), "new ones are spared"
    old = time.time() - module.SPARED_S - 10
    for path in tmp_path.glob("*.*"):
        os.utime(path, (old, old))
    changed = Memo(tmp_path)
    changed.tensors({"for": "shared"}, never)
    changed.forget_unused("table")
    assert {name for name in ("shared", "table", "evaluation") if changed.has({"for": name})} == {
        "shared",
        "evaluation",
    }
    assert not list(tmp_path.glob(f"{identity({'for': 'table'})}*"))
