"""One champion at a time, a history that only grows, and a way back."""

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_evaluation import records

from components import tracking
from components.params import GatesConfig
from components.profiles import load_profile, profile_text
from components.registry import promotion
from components.registry.gates import packed
from components.registry.promotion import Decision
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
    promotion.promote(params, "1", Decision("the first"))
    promotion.promote(params, "2", Decision("sharper | better"))
    (first, second) = registry(params).history()
    assert (first.before, first.after, second.before, second.after) == ("", "1", "1", "2")
    assert second.why == "sharper | better"
    assert "@" in second.who
    assert second.when.startswith("20")
    assert second.is_done
    client = registry(params)._client
    assert "**Champion**: version 2" in client.get_registered_model("invfusion").description
    lines = client.get_registered_model("invfusion-history").description.splitlines()
    assert ["1 → 2" in lines[0], "none → 1" in lines[1]] == [True, True]
    assert lines[0].endswith(": sharper | better")


def test_a_decision_about_another_champion_is_refused(params: Any) -> None:
    asked = datetime.now(UTC)
    promotion.promote(params, "1", Decision("the first", asked=asked))
    with pytest.raises(ConfigError, match=r"champion is version 1, and was none when this was decided: .*the first"):
        promotion.promote(params, "2", Decision("asked at the same time", asked=asked))
    with pytest.raises(ConfigError, match="--expect 1"):
        promotion.promote(params, "2", Decision("a mistake", expect="3"))
    promotion.promote(params, "2", Decision("seen", who="ada", expect="1"))
    with pytest.raises(ConfigError, match=r"version 2, and was 1.*by ada: seen"):
        promotion.rollback(params, Decision("too late", expect="1"))
    promotion.promote(params, "3", Decision("later", asked=datetime.now(UTC)))
    assert [change.who for change in registry(params).history()][1] == "ada"


def test_each_rollback_goes_one_step_back(params: Any) -> None:
    for number in ("1", "2", "3"):
        promotion.promote(params, number, Decision("newer"))
    assert [promotion.rollback(params, Decision("worse")), promotion.rollback(params, Decision("worse"))] == ["2", "1"]
    assert champion(params) == "1"
    with pytest.raises(ConfigError, match="no earlier champion"):
        promotion.rollback(params, Decision("worse"))
    promotion.promote(params, "3", Decision("mended"))
    assert promotion.rollback(params, Decision("not mended")) == "1"
    assert len(lines(params)) == 7


def test_a_failed_gate_stops_a_promotion_unless_somebody_takes_it_upon_himself(params: Any) -> None:
    promotion.promote(params, "1", Decision("the first"))
    with pytest.raises(ConfigError, match=r"stays a challenger\n  gain over Palette on matrix: -2.50 dB"):
        promotion.promote(params, "4", Decision("I like it"))
    assert champion(params) == "1"
    promotion.promote(params, "4", Decision("for a demonstration"), anyway=True)
    assert champion(params) == "4"
    assert "gain over the champion on matrix: -5.00 dB" in registry(params).history()[-1].why


def test_versions_that_cannot_be_promoted_are_named(params: Any) -> None:
    promotion.promote(params, "1", Decision("the first"))
    with pytest.raises(ConfigError, match="is the champion already"):
        promotion.promote(params, "1", Decision("again"))
    with pytest.raises(ConfigError, match="has no version 9"):
        promotion.promote(params, "9", Decision("a typo"))


def test_an_alias_moved_by_hand_enters_the_history(params: Any) -> None:
    promotion.promote(params, "1", Decision("the first"))
    registry(params).give("champion", tracking.Version("3", {}))
    promotion.promote(params, "2", Decision("better"))
    assert lines(params) == [("promoted", "", "1"), ("moved by hand", "1", "3"), ("promoted", "3", "2")]


def test_a_crash_between_history_and_alias_is_made_good(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    promotion.promote(params, "1", Decision("the first"))
    with monkeypatch.context() as patch:
        patch.setattr(promotion, "conclude", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            promotion.promote(params, "2", Decision("better"))
    assert champion(params) == "1"
    holder = promotion.present(registry(params))
    assert holder is not None
    assert holder.number == champion(params) == "2"
    assert len(lines(params)) == 2


@pytest.mark.slow
def test_of_four_commands_started_together_one_wins(params: Any, tmp_path: Path) -> None:
    promotion.promote(params, "1", Decision("the first"))
    text = profile_text("digits16").replace("model: invfusion_g", "model: invfusion")
    (tmp_path / "params.yaml").write_text(text)
    command = [sys.executable, "-m", "components.registry.promotion", "promote"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    four = [
        subprocess.Popen(
            [*command, number, "--why", f"{n}", "--anyway"], env=environment, stderr=subprocess.PIPE, text=True
        )
        for n, number in enumerate(("2", "3", "2", "3"))
    ]
    said = [process.communicate(timeout=240)[1] for process in four]
    assert sorted(process.returncode for process in four) == [0, 1, 1, 1], said
    refused = [text for text, process in zip(said, four, strict=True) if process.returncode]
    assert all("came first" in text or "when this was decided" in text for text in refused)
    assert len(promotion.valid(registry(params).history())) == 2
