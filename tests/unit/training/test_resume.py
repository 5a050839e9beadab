"""Two runs are equal, a killed one continues as if nothing had happened, and two processes see one process' losses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from invfusion.errors import ConfigError
from invfusion.models import Denoiser, build_denoiser, compile_layers
from invfusion.training.distributed import Processes

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.run(folder)
    return folder


class StopAt:
    """Asks for an end after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{HERE}", "OMP_NUM_THREADS": "1"}


def start(folder: Path, images: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(HERE / "tiny.py"), str(folder), str(images)], env=environment())


def test_two_runs_are_equal_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    torch.rand(3)  # whatever global state there is has no part in it
    tiny.run(tmp_path)
    assert tiny.files(tmp_path) == tiny.files(whole)
    assert tiny.curve(tmp_path) == tiny.curve(whole)


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.run(tmp_path, tiny.task(images=8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
def test_a_stopped_run_continues_bit_for_bit(whole: Path, tmp_path: Path, steps: int) -> None:
    assert tiny.run(tmp_path, should_stop=StopAt(steps)) is None
    assert tiny.run(tmp_path) is not None
    assert tiny.files(tmp_path) == tiny.files(whole)
    assert tiny.curve(tmp_path) == tiny.curve(whole)


def test_a_change_of_mode_is_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiled = build_denoiser(tiny.ARCHITECTURE)
    compile_layers(compiled, backend="eager")
    assert tiny.run(tmp_path, should_stop=StopAt(1)) is None
    assert tiny.run(tmp_path, should_stop=StopAt(1)) is None
    assert "bit for bit" not in caplog.text
    assert tiny.run(tmp_path, should_stop=StopAt(1), denoiser=compiled) is None
    assert "trained eager, the rest is trained compiled" in caplog.text


def test_a_run_killed_at_any_moment_continues_bit_for_bit(tmp_path: Path) -> None:
    images = 480
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    tiny.run(reference, tiny.task(images=images))
    child = start(killed, images)
    deadline = time.monotonic() + 60
    while not list((killed / "state").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    tiny.run(killed, tiny.task(images=images))
    assert tiny.files(killed) == tiny.files(reference)
    assert tiny.curve(killed) == tiny.curve(reference)


def test_a_longer_run_continues_a_shorter_one(whole: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path, tiny.task(images=40))
    tiny.run(tmp_path)
    assert tiny.files(tmp_path) == tiny.files(whole)


def test_a_finished_run_gives_its_result_at_once(whole: Path) -> None:
    def never() -> bool:
        raise AssertionError("a finished run takes no step")

    assert isinstance(tiny.run(whole, should_stop=never), Denoiser)


def test_the_averaged_model_is_what_the_checkpoint_holds(whole: Path) -> None:
    model = tiny.run(whole)
    assert model is not None
    assert not model.training
    averages, live = read(whole, "ema/"), read(whole, "model/")
    assert all(torch.equal(t, averages[name]) for name, t in model.state_dict().items())
    assert any(not torch.equal(t, live[name]) for name, t in averages.items())


def read(folder: Path, prefix: str) -> dict[str, Tensor]:
    from invfusion.training.checkpoint import load_newest

    found = load_newest(folder / "state")
    assert found is not None
    return {name.removeprefix(prefix): t for name, t in found[0].items() if name.startswith(prefix)}


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path, n_workers=2)
    assert tiny.files(tmp_path) == tiny.files(whole)


def test_two_processes_see_the_losses_of_one(whole: Path, tmp_path: Path) -> None:
    # torchrun finds a port by itself: one that was looked for here could be taken a moment later.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, str(HERE / "tiny.py"), str(tmp_path), "96"], env=environment(), check=True, timeout=240)
    for one, two in zip(tiny.curve(whole), tiny.curve(tmp_path), strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    one, two = read(whole, "model/"), read(tmp_path, "model/")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-4)


def test_micro_batches_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 micro-batches cannot be shared evenly by 3 processes"):
        tiny.run(tmp_path, processes=Processes(0, 3))
