"""Operators drawn ahead by threads are the operators drawn when asked for."""

import threading
from pathlib import Path

import pytest
import tiny
import torch

from invfusion.training.draws import OperatorDraws
from invfusion.training.task import Task

SHAPE = (3, 8, 8)


def draws(task: Task, n_threads: int) -> OperatorDraws:
    return OperatorDraws(task, SHAPE, stride=8, device=tiny.CPU, n_threads=n_threads)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_change_no_operator(n_threads: int) -> None:
    direct, ahead = draws(tiny.task(), 0), draws(tiny.task(), n_threads)
    x = tiny.normal(4, *SHAPE)
    for start in range(4, 100, 8):
        ours, theirs = ahead(start), direct(start)
        assert ours is not None
        assert theirs is not None
        assert ours.kind == theirs.kind
        assert all(torch.equal(t, theirs.tensors()[name]) for name, t in ours.tensors().items())
        assert torch.equal(ours.H_pinv(ours.H(x)), theirs.H_pinv(theirs.H(x)))
    ahead.close()


def test_it_can_start_anywhere() -> None:
    ahead = draws(tiny.task(), 1)
    for start in (40, 8, 16):
        ours, theirs = ahead(start), draws(tiny.task(), 0)(start)
        assert ours is not None
        assert theirs is not None
        assert all(torch.equal(t, theirs.tensors()[name]) for name, t in ours.tensors().items())
    ahead.close()


def test_the_pseudo_inverse_is_ready_and_threads_end() -> None:
    ahead = draws(tiny.task(degradation=tiny.FAMILIES["matrix"]()), 2)
    operator = ahead(0)
    assert operator is not None
    assert "gram_inverse" in operator.__dict__
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("operator-draws")]


def test_linear_algebra_is_loaded_before_the_threads_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU, where its loading is not thread-safe. The meta device stands in for it."""
    events: list[tuple[str, bool]] = []

    def note(event: str) -> None:
        events.append((event, threading.current_thread() is threading.main_thread()))

    def factor(matrix: torch.Tensor) -> None:
        note(f"cholesky on {matrix.device}")

    monkeypatch.setattr(torch.linalg, "cholesky", factor)
    monkeypatch.setattr(OperatorDraws, "_draw", lambda self, index: note("draw"))
    ahead = OperatorDraws(tiny.task(), SHAPE, stride=8, device=torch.device("meta"), n_threads=2)
    for start in (0, 8):
        ahead(start)
    ahead.close()
    assert events[0] == ("cholesky on meta", True)
    assert set(events[1:]) == {("draw", False)}


def test_unconditional_training_draws_none() -> None:
    assert draws(tiny.task(degradation=None), 1)(0) is None


def test_errors_arrive_where_the_operator_is_asked_for() -> None:
    class Broken(type(tiny.FAMILY)):  # type: ignore[misc]
        def sample(self, *_: object, **__: object) -> None:
            raise RuntimeError("no operator today")

    ahead = draws(tiny.task(degradation=Broken(members=tiny.FAMILY.members)), 1)
    with pytest.raises(RuntimeError, match="no operator today"):
        ahead(0)
    ahead.close()


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    for name, n in (("direct", 0), ("ahead", 2)):
        tiny.run(tmp_path / name, tiny.task(images=48), n_draw_threads=n)
    assert tiny.files(tmp_path / "direct") == tiny.files(tmp_path / "ahead")
    assert tiny.curve(tmp_path / "direct") == tiny.curve(tmp_path / "ahead")
