"""One process of `benchmarks.suites.threads`: training steps of "ours", "compiled" or the "plain" reference, timed."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.plain import PlainTrainer
from benchmarks.setting import Setting
from invfusion.data import Batch
from invfusion.models import compile_network
from invfusion.training.distributed import Processes, processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper

# A family of the mixture is drawn for each step, so that few steps say little; the first ones warm up, or compile.
STEPS = 48
WARM_UP = {"plain": 4, "ours": 4, "compiled": 24}


def main() -> None:
    """One case: this process, or one of torchrun's."""
    what, device = sys.argv[1], torch.device("cpu")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    setting = Setting("digits16", device)
    with processes(device) as group:
        size = setting.batch_size // group.world_size
        batches = (Batch(b.images[:size], b.keys[:size], b.labels[:size]) for b in setting.batches())
        step = _plain_step(setting) if what == "plain" else _our_step(setting, group, size, what == "compiled")
        for number in range(WARM_UP[what]):
            step(number * setting.batch_size, batches)
        start = time.perf_counter()
        for number in range(STEPS):
            step(number * setting.batch_size, batches)
        if group.rank == 0:
            print(json.dumps({"seconds": (time.perf_counter() - start) / STEPS}))


def _plain_step(setting: Setting) -> Callable[..., Any]:
    return PlainTrainer(setting.task("mixture"), setting.denoiser("invfusion"), setting.device).step


def _our_step(setting: Setting, group: Processes, size: int, compiled: bool) -> Callable[..., Any]:
    task, denoiser = setting.task("mixture"), setting.denoiser("invfusion").train()
    task = replace(task, config=task.config.model_copy(update={"micro_batch_size": size}))
    if compiled:
        compile_network(denoiser)
    stepper = Stepper(task, denoiser, group, setting.device)
    ema = EMA(denoiser, task.config.ema_half_life, task.config.ema_rampup)

    def step(nimg: int, batches: Any) -> None:
        stepper.step(nimg, batches)
        ema.update(denoiser, nimg + setting.batch_size, setting.batch_size)

    return step


if __name__ == "__main__":
    main()
