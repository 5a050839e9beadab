"""Schedule, average, lock, log and settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from invfusion.errors import CheckpointError
from invfusion.training.config import OptimisationConfig, TrainConfig
from invfusion.training.ema import EMA
from invfusion.training.history import History
from invfusion.training.lock import exclusive
from invfusion.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("nimg", "factor"),
    [(0, 0.0), (2**21, 0.5), (2**22, 1.0), (2**24, 1.0), (2**26, 0.5), (2**24 * 9, 1 / 3)],
)
def test_learning_rate_of_the_paper(nimg: int, factor: float) -> None:
    config = OptimisationConfig()
    rate = learning_rate(nimg, config.lr, config.warmup_images, config.decay_start_images)
    assert rate == pytest.approx(5e-5 * factor)


def test_learning_rate_without_warm_up() -> None:
    assert learning_rate(0, 1.0, 0, 100) == 1.0


class TestEMA:
    def test_half_life(self) -> None:
        average = EMA(nn.Linear(1, 1), half_life=100, rampup=0.3)
        decay = 1.0
        for nimg in range(10_010, 10_111, 10):
            decay *= average.beta(nimg, 10) if nimg > 10_010 else 1
        assert decay == pytest.approx(0.5)

    def test_ramp_multiplies(self) -> None:
        """After n images the half-life is rampup * n: the first weights are forgotten within a few hundred batches."""
        average = EMA(nn.Linear(1, 1), half_life=2**20, rampup=0.3)
        assert average.beta(1000, 100) == pytest.approx(0.5 ** (100 / 300))
        left = 1.0
        for step in range(1, 257):
            left *= average.beta(512 * step, 512)
        assert left < 1e-6

    def test_update_moves_towards_the_weights(self) -> None:
        model = nn.Linear(2, 2)
        average = EMA(model, half_life=100, rampup=1e9)
        before = average.weights["weight"].clone()
        with torch.no_grad():
            model.weight += 1
        average.update(model, nimg=100, batch_size=100)
        torch.testing.assert_close(average.weights["weight"], before + 0.5)

    def test_no_average(self) -> None:
        model = nn.Linear(2, 2)
        average = EMA(model, half_life=0, rampup=0.3)
        with torch.no_grad():
            model.weight += 1
        average.update(model, nimg=100, batch_size=100)
        torch.testing.assert_close(average.weights["weight"], model.weight.detach())


class TestLock:
    def test_a_second_process_is_refused_and_named(self, tmp_path: Path) -> None:
        code = f"""
from invfusion.training.lock import exclusive
from pathlib import Path
with exclusive(Path({str(tmp_path)!r})): pass
"""
        with exclusive(tmp_path):
            refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert f"in use by process {os.getpid()}" in refused.stderr
        with exclusive(tmp_path):
            pass

    def test_it_is_free_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError), exclusive(tmp_path):
            raise RuntimeError
        with exclusive(tmp_path):
            pass


class TestHistory:
    def test_truncating_drops_what_came_after(self, tmp_path: Path) -> None:
        history = History(tmp_path / "log.jsonl")
        for nimg in (10, 20, 30):
            history.append({"nimg": nimg, "loss": 0.1 * nimg})
        history.truncate(20)
        assert [entry["nimg"] for entry in history.entries()] == [10, 20]

    def test_a_torn_last_line_is_ignored(self, tmp_path: Path) -> None:
        history = History(tmp_path / "log.jsonl")
        history.append({"nimg": 10})
        with history.path.open("a") as file:
            file.write(json.dumps({"nimg": 20, "loss": 1})[:9])
        assert [entry["nimg"] for entry in history.entries()] == [10]

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="free some space"):
            History(Path("/dev/full")).append({"nimg": 1})

    def test_nothing_yet(self, tmp_path: Path) -> None:
        assert History(tmp_path / "log.jsonl").entries() == []


class TestConfig:
    def test_defaults_are_the_papers(self) -> None:
        config = TrainConfig()
        assert (config.images, config.batch_size, config.lr) == (2**25, 512, 5e-5)
        assert (config.loss.P_mean, config.loss.P_std) == (-0.8, 1.6)
        assert config.betas == (0.9, 0.99)

    def test_micro_batches_must_fill_a_batch(self) -> None:
        with pytest.raises(ValidationError, match="batch_size 10 is not a multiple of micro_batch_size 4"):
            OptimisationConfig(batch_size=10, micro_batch_size=4)

    def test_images_are_rounded_up_to_batches(self) -> None:
        assert OptimisationConfig(images=100, batch_size=64).total_images == 128
