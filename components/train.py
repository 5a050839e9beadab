"""Train one variant of the denoiser on the staged data, and publish its averaged weights.

Under torchrun every process calls this; `python -m components.train --variant invfusion` starts one.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from components import tracking
from components.grids import restoration_grid
from invfusion.config import Params, load_params
from invfusion.data import StagedDataset
from invfusion.errors import CheckpointError, ConfigError, InvFusionError
from invfusion.models import Denoiser, Variant, build_denoiser, save_denoiser, set_attention_backend
from invfusion.training.distributed import Processes, processes
from invfusion.training.lock import exclusive
from invfusion.training.loop import Task, train as run_training

log = logging.getLogger(__name__)

STAGED = Path("artifacts/staged")
MODELS = Path("artifacts/models")
LOGS = Path("artifacts/logs")
STATE = Path("state/train")


def train(params: Params, variant: Variant) -> Path:
    """Train (or go on training) one variant; returns artifacts/models/<variant>.

    Raises:
        InvFusionError: data, parameters or services are wrong, before training starts; NonFiniteError during it.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, with a checkpoint written.
    """
    if params.runtime.processes > 1 and "WORLD_SIZE" not in os.environ:
        launch(params.runtime.processes, "components.train", ["--variant", variant])
        return MODELS / variant
    task = Task(
        loss=params.train.loss,
        degradation=None if variant == "unconditional" else params.degradation,
        sigma_y=params.sigma_y,
        config=params.train,
        seed=params.seed,
        fingerprint="",
    )
    return run(params, variant, task, denoiser_for(params, variant))


def denoiser_for(params: Params, variant: Variant) -> Denoiser:
    """The freshly initialised denoiser of one variant."""
    return build_denoiser(params.denoiser_config(variant), seed=params.seed)


def run(params: Params, name: str, task: Task, denoiser: Denoiser) -> Path:
    """Train a denoiser on a task and publish it under artifacts/models/<name>."""
    tracking.check_reachable(params)
    device = pick_device(params.runtime.device)
    dataset = StagedDataset(STAGED, "train")
    facts = _facts(params, name, task, denoiser, dataset)
    task = replace(task, fingerprint=_hash(facts))
    set_attention_backend(denoiser, params.runtime.attention_backend)
    folder = STATE / name
    with ExitStack() as stack:
        group = stack.enter_context(processes(device))
        if group.rank == 0:
            stack.enter_context(exclusive(folder))
        stop = stack.enter_context(_stop_signals())
        observer = stack.enter_context(_observer(params, name, task, dataset, group))
        model = run_training(
            task, denoiser, dataset, folder,
            device=device, processes=group, n_workers=params.runtime.workers,
            observer=observer, should_stop=lambda: stop.signal is not None,
        )  # fmt: skip
    if model is None:
        log.warning("stopped with a checkpoint written; the same command continues")
        sys.exit(128 + (stop.signal or signal.SIGTERM))
    if group.rank == 0:
        _publish(model, name, facts | {"nimg": task.config.images, "git_revision": tracking.git_revision()}, folder)
    return MODELS / name


def pick_device(name: str) -> torch.device:
    """The device that `runtime.device` names; "auto" is CUDA where there is one, each process its own GPU."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _facts(params: Params, name: str, task: Task, denoiser: Denoiser, dataset: StagedDataset) -> dict[str, Any]:
    """What defines a trained model: its manifest, and the fingerprint of its training state."""
    return {
        "name": name,
        "data": params.data.name,
        "data_digest": dataset.digest,
        "architecture": denoiser.config.model_dump(mode="json"),
        "initial_weights": _hash_weights(denoiser),
        "loss": task.loss.model_dump(mode="json"),
        "degradation": task.degradation.model_dump(mode="json") if task.degradation is not None else None,
        "sigma_y": list(task.sigma_y),
        "training": task.config.model_dump(mode="json", exclude={"checkpoint_images", "log_images", "sample_grid_images"}),
        "seed": task.seed,
    }


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _hash_weights(denoiser: Denoiser) -> str:
    digest = hashlib.sha256()
    for tensor in denoiser.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _publish(model: Denoiser, name: str, manifest: dict[str, Any], folder: Path) -> None:
    save_denoiser(model, MODELS / name, manifest | {"packages": tracking.package_versions()})
    LOGS.mkdir(parents=True, exist_ok=True)
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    with (LOGS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["nimg", "loss", "lr"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)


def launch(n: int, module: str, arguments: list[str]) -> None:
    """Run a component in n processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", "-m", module]
    code = subprocess.run([*command, *arguments], check=False).returncode
    if code:
        raise CheckpointError(f"{module} stopped with exit code {code}; its own message stands above")


@dataclass
class _Stop:
    signal: int | None = None


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn SIGTERM and SIGINT into a request: the running step ends, a checkpoint is written, then the process exits."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone
        return

    def ask(number: int, _frame: Any) -> None:
        stop.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Observer:
    """Shows progress, and sends the curve and sample grids to the tracker."""

    def __init__(self, bar: Any, sink: tracking.Run, shown: StagedDataset, task: Task) -> None:
        self.bar, self.sink, self.shown, self.task = bar, sink, shown, task

    def on_log(self, entry: dict[str, float]) -> None:
        self.bar.update(int(entry["nimg"]) - self.bar.n)
        self.bar.set_postfix(loss=f"{entry['loss']:.3f}")
        self.sink.log_metrics({key: value for key, value in entry.items() if key != "nimg"}, int(entry["nimg"]))

    def on_grid(self, ema: Denoiser, nimg: int) -> None:
        self.sink.log_image("samples", restoration_grid(self.shown, self.task, ema), nimg)


@contextmanager
def _observer(
    params: Params, name: str, task: Task, dataset: StagedDataset, group: Processes
) -> Iterator[_Observer | None]:
    if group.rank != 0:
        yield None
        return
    with (
        tracking.start_run(params, "train", name) as sink,
        tqdm(total=task.config.images, desc=name, unit="img", mininterval=2, smoothing=0.1) as bar,
    ):
        sink.log_dataset(params.data.name, dataset.digest, str(params.data.shards))
        yield _Observer(bar, sink, StagedDataset(STAGED, "val"), task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", required=True, choices=["unconditional", "palette", "invfusion"])
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(load_params(arguments.params), arguments.variant)
    except InvFusionError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
