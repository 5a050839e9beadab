"""One process of `benchmarks.suites.threads`, timed: "training", "sampling" or "restoring" of "plain", "ours" or
"compiled"; the last two of "compiled bf16" too, with the trunk in bfloat16."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.plain import PlainDenoiser, PlainTrainer, plain_sample
from benchmarks.setting import MIXTURE, Setting
from benchmarks.suites.whole import restoring_runs
from invfusion import rng
from invfusion.data import Batch
from invfusion.models import Denoiser, compile_network, lower_precision
from invfusion.samplers import Heun
from invfusion.training.distributed import Processes, processes
from invfusion.training.ema import EMA
from invfusion.training.step import Stepper

# Of a kind of operator and an index under which it is drawn.
Job = Callable[[str, int], None]
# A family of the mixture is drawn for each step, so that few steps say little; the first ones warm up, or compile.
STEPS = 48
WARM_UP = {"plain": 4, "ours": 4, "compiled": 24}
# One-step estimates are made of so many batches of each family, operators drawn anew.
ROUNDS = 4
# The default sampler, and one that warms up.
SAMPLER = Heun(n_steps=18)
SHORT = Heun(n_steps=2)


def main() -> None:
    """One case: this process, or one of torchrun's."""
    job, what, device = sys.argv[1], sys.argv[2], torch.device("cpu")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    setting = Setting("digits16", device)
    with processes(device) as group:
        rate = {"training": _training, "sampling": _sampling, "restoring": _restoring}[job](setting, group, what)
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
    denoiser, n = _network(setting, what), setting.sampling_batch
    plain, noise = PlainDenoiser(denoiser), setting.starts(n)

    def sample(config: Heun, kind: str, index: int) -> None:
        measurement = setting.measurement(kind, n, index)
        if what == "plain":
            plain_sample(plain, measurement, noise, config)
        else:
            config.sample(denoiser, measurement, noise, generators=rng.generators(0, "benchmarks/way", range(n)))

    return _rate(group, n, MIXTURE, partial(sample, SHORT), partial(sample, SAMPLER), rounds=1)


def _restoring(setting: Setting, group: Processes, what: str) -> float:
    """One-step estimates, each process of batches of its own; measuring stands in the time, as do the operators."""
    denoiser = _network(setting, what)
    restore = restoring_runs(setting, denoiser, denoiser)["plain" if what == "plain" else "ours"]
    return _rate(group, setting.sampling_batch, MIXTURE[:-1], restore, restore, ROUNDS)


def _network(setting: Setting, what: str) -> Denoiser:
    denoiser = setting.denoiser("invfusion").eval()
    if what.endswith("bf16"):
        lower_precision(denoiser)
    if what.startswith("compiled"):
        compile_network(denoiser)
    return denoiser


def _rate(group: Processes, n: int, kinds: Sequence[str], warm: Job, job: Job, rounds: int) -> float:
    """Images per second of all processes, each with `rounds` batches of n for each kind of operator.

    All are done once before, since a compiled network has a graph for each stride.
    """
    indices = range(group.rank, group.world_size * rounds, group.world_size)
    with torch.inference_mode():
        for kind, index in product(kinds, indices):
            warm(kind, index)
        group.barrier()
        start = time.perf_counter()
        for kind, index in product(kinds, indices):
            job(kind, index)
        group.barrier()
    return group.world_size * rounds * len(kinds) * n / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
