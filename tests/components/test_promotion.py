"""One champion at a time, a history that only grows, and a way back."""

import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_evaluation import records

from components import tracking
from components.params import GatesConfig
from components.profiles import load_profile
from components.registry import promotion
from components.registry.gates import packed
from invfusion.errors import ConfigError

ROOT = Path(__file__).parents[2]
GATES = {"max_consistency_mse": 0.01, "min_psnr_gain_over_palette": 0.0, "min_psnr_gain_over_champion": -0.2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with three versions of equal quality and a fourth that is worse."""
    folder = tmp_path_factory.mktemp("store")
    client = tracking.connect(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_registered_model("invfusion")
    for gain in (0.0, 0.0, 0.0, -5.0):
        tags = {"metrics": packed(records(InvFusion={"matrix": gain}), {"InvFusion", "Palette"})}
        client.create_model_version("invfusion", "file:///nowhere", tags=tags)
    return folder / "mlflow.db"


@pytest.fixture
def params(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    shutil.copy(store, tmp_path / "mlflow.db")
    return settings()


def settings() -> Any:
    params = load_profile()
    register = params.register_.model_copy(update={"gates": GatesConfig(**GATES), "model": "invfusion"})
    return params.model_copy(update={"register_": register})


def registry(params: Any) -> tracking.Registry:
    return tracking.Registry(params, "invfusion")


def champion(params: Any) -> str:
    holder = registry(params).holder("champion")
    return holder.number if holder else ""


def lines(params: Any) -> list[tuple[str, str, str]]:
    return [(change.action, change.before, change.after) for change in registry(params).history()]


def test_who_when_and_why_are_kept_and_shown(params: Any) -> None:
    promotion.promote(params, "1", "the first")
    promotion.promote(params, "2", "sharper | better")
    (first, second) = registry(params).history()
    assert (first.before, first.after, second.before, second.after) == ("", "1", "1", "2")
    assert second.why == "sharper | better"
    assert "@" in second.who
    assert second.when.startswith("20")
    assert second.is_done
    page = registry(params)._client.get_registered_model("invfusion").description
    assert "| 1 → 2 | promoted | sharper / better |" in page
    assert page.index("1 → 2") < page.index("none → 1")


def test_each_rollback_goes_one_step_back(params: Any) -> None:
    for number in ("1", "2", "3"):
        promotion.promote(params, number, "newer")
    assert [promotion.rollback(params, "worse"), promotion.rollback(params, "worse")] == ["2", "1"]
    assert champion(params) == "1"
    with pytest.raises(ConfigError, match="no earlier champion"):
        promotion.rollback(params, "worse")
    promotion.promote(params, "3", "mended")
    assert promotion.rollback(params, "not mended") == "1"
    assert len(lines(params)) == 7


def test_a_failed_gate_stops_a_promotion_unless_somebody_takes_it_upon_himself(params: Any) -> None:
    promotion.promote(params, "1", "the first")
    with pytest.raises(ConfigError, match=r"stays a challenger\n  gain over Palette on matrix: -2.50 dB"):
        promotion.promote(params, "4", "I like it")
    assert champion(params) == "1"
    promotion.promote(params, "4", "for a demonstration", anyway=True)
    assert champion(params) == "4"
    assert "gain over the champion on matrix: -5.00 dB" in registry(params).history()[-1].why


def test_versions_that_cannot_be_promoted_are_named(params: Any) -> None:
    promotion.promote(params, "1", "the first")
    with pytest.raises(ConfigError, match="is the champion already"):
        promotion.promote(params, "1", "again")
    with pytest.raises(ConfigError, match="has no version 9"):
        promotion.promote(params, "9", "a typo")


def test_an_alias_moved_by_hand_enters_the_history(params: Any) -> None:
    promotion.promote(params, "1", "the first")
    registry(params).give("champion", tracking.Version("3", {}))
    promotion.promote(params, "2", "better")
    assert lines(params) == [("promoted", "", "1"), ("moved by hand", "1", "3"), ("promoted", "3", "2")]


def test_a_crash_between_history_and_alias_is_made_good(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    promotion.promote(params, "1", "the first")
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "conclude", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(params, "2", "better")
    assert champion(params) == "1"
    holder = promotion.present(registry(params))
    assert holder is not None
    assert holder.number == champion(params) == "2"
    assert len(lines(params)) == 2


def _promote(folder: str, number: str, meeting: Any, answers: Any) -> None:
    os.chdir(folder)
    before = promotion.judge

    def judge(*arguments: Any) -> Any:
        meeting.wait(60)  # both have seen the same champion now
        return before(*arguments)

    promotion.judge = judge  # type: ignore[assignment]
    try:
        promotion.promote(settings(), number, f"by process {number}")
        answers.put(SimpleNamespace(number=number, won=True, said=""))
    except ConfigError as error:
        answers.put(SimpleNamespace(number=number, won=False, said=str(error)))


@pytest.mark.slow
def test_of_two_promotions_at_once_one_wins(params: Any, tmp_path: Path) -> None:
    promotion.promote(params, "1", "the first")
    context = multiprocessing.get_context("spawn")
    meeting, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=_promote, args=(str(tmp_path), n, meeting, answers)) for n in ("2", "3")]
    for process in both:
        process.start()
    found = [answers.get(timeout=120) for _ in both]
    for process in both:
        process.join(60)
    (winner,) = (answer for answer in found if answer.won)
    (loser,) = (answer for answer in found if not answer.won)
    assert champion(params) == winner.number
    assert "came first" in loser.said
    changes = registry(params).history()
    assert [change.before for change in changes] == ["", "1", "1"]
    assert [change.number for change in promotion.valid(changes)] == [1, 2]
    assert changes[-1].outcome.startswith("refused")
