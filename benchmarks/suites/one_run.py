"""One process of `benchmarks.suites.threads`: "training" or "sampling" of "ours", "compiled" or "plain", timed."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.plain import PlainDenoiser, PlainTrainer, plain_sample
from benchmarks.setting import MIXTURE, Setting
from invfusion import rng
from invfusion.data import Batch
from invfusion.models import compile_network
from invfusion.samplers import Heun
from invfusion.training.distributed import Processes, processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper

# A family of the mixture is drawn for each step, so that few steps say little; the first ones warm up, or compile.
STEPS = 48
WARM_UP = {"plain": 4, "ours": 4, "compiled": 24}
# The default sampler, and one that warms up.
SAMPLER = Heun(n_steps=18)
SHORT = Heun(n_steps=2)


def main() -> None:
    """One case: this process, or one of torchrun's."""
    job, what, device = sys.argv[1], sys.argv[2], torch.device("cpu")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    setting = Setting("digits16", device)
    with processes(device) as group:
        rate = {"training": _training, "sampling": _sampling}[job](setting, group, what)
        if group.rank == 0:
            print(json.dumps({"images_per_second": rate}))


def _training(setting: Setting, group: Processes, what: str) -> float:
    """The processes share each batch."""
    size = setting.batch_size // group.world_size
    batches = (Batch(b.images[:size], b.keys[:size], b.labels[:size]) for b in setting.batches())
    step = _plain_step(setting) if what == "plain" else _our_step(setting, group, size, what == "compiled")
    for number in range(WARM_UP[what]):
        step(number * setting.batch_size, batches)
    start = time.perf_counter()
    for number in range(STEPS):
        step(number * setting.batch_size, batches)
    return STEPS * setting.batch_size / (time.perf_counter() - start)


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


def _sampling(setting: Setting, group: Processes, what: str) -> float:
    """Each process has a batch of its own, as in evaluation; the operators and their inverses are drawn in the time."""
    denoiser, n = setting.denoiser("invfusion").eval(), setting.sampling_batch
    plain = PlainDenoiser(denoiser)
    if what == "compiled":
        compile_network(denoiser)
    noise = rng.randn(setting.config.image_shape, rng.generators(0, "benchmarks/start", range(n)), setting.device)

    def sample(kind: str, config: Heun) -> None:
        measurement = setting.measurement(kind, n, group.rank)
        if what == "plain":
            plain_sample(plain, measurement, noise, config)
        else:
            generators = rng.generators(0, "benchmarks/way", range(n))
            config.sample(denoiser, measurement, noise, generators=generators)

    with torch.inference_mode():
        for kind in MIXTURE:
            sample(kind, SHORT)
        group.barrier()
        start = time.perf_counter()
        for kind in MIXTURE:
            sample(kind, SAMPLER)
        group.barrier()
    return group.world_size * len(MIXTURE) * n / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
