"""One process of `benchmarks.suites.threads`: some training steps, timed."""

import json
import os
import time
from dataclasses import replace
from statistics import median

import torch

from benchmarks.setting import Setting
from invfusion.data import Batch
from invfusion.training.distributed import processes
from invfusion.training.step import Stepper

STEPS = 24


def main() -> None:
    """One case: this process, or one of torchrun's."""
    device = torch.device("cpu")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    setting = Setting("digits16", device)
    with processes(device) as group:
        task = setting.task("mixture")
        size = setting.batch_size // group.world_size
        config = task.config.model_copy(update={"micro_batch_size": size})
        task = replace(task, config=config)
        stepper = Stepper(task, setting.denoiser("invfusion").train(), group, device)
        batches = (Batch(b.images[:size], b.keys[:size], b.labels[:size]) for b in setting.batches())
        times = []
        for step in range(STEPS):
            start = time.perf_counter()
            stepper.step(step * setting.batch_size, batches)
            times.append(time.perf_counter() - start)
        if group.rank == 0:
            print(json.dumps({"seconds": median(times[4:])}))


if __name__ == "__main__":
    main()
