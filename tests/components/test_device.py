"""How many processes share a piece of work."""

from typing import Any

import pytest
import torch
from tiny_training import make_params

from components.device import n_processes, threads_each


def params(**runtime: Any) -> Any:
    """Batches of 12 images in 6 micro-batches."""
    base = make_params(batch_size=12, micro_batch_size=2)
    return base.model_copy(update={"runtime": base.runtime.model_copy(update=runtime)})


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (16, 6)])
def test_on_a_cpu_auto_gives_every_process_a_thread_and_as_many_micro_batches_as_the_others(
    monkeypatch: pytest.MonkeyPatch, threads: int, expected: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert n_processes(params(processes="auto", device="cpu")) == expected
    assert threads_each(expected) == threads // expected


def test_a_number_is_taken_as_it_is() -> None:
    assert n_processes(params(processes=5)) == 5
    assert params(processes=5).runtime.n_devices == 5


def test_auto_takes_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.device.pick_device", lambda _: torch.device("cuda", 0))
    assert n_processes(params(processes="auto")) == 1
    assert params(processes="auto").runtime.n_devices == 1
