"""Kills training again and again until it has ended, and compares it with an undisturbed run.

One process imports everything and forks each attempt, so that an attempt costs no start-up:
`python kill_training.py <folder> <images> <loader workers> <processes> <wanted kills> <seed>` prints
{"kills", "runs", "equal"}. With "points" as the wanted kills, every <seed>-th operation on files that a checkpoint
consists of is tried instead: {"points", "equal"}.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from invfusion.data import StagedDataset
from invfusion.training import checkpoint
from invfusion.training.distributed import processes
from invfusion.training.lock import exclusive

SLOWEST_S = 60.0
# For a process whose partner is gone: gloo cannot always be taken down in order then.
GRACE_S = 5.0
# The data is there before the processes are.
write_data, tiny.stage = tiny.stage, lambda folder: StagedDataset(folder, "train")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def attempt(
    folder: Path, images: int, n_workers: int, world: int, before: Callable[[], None] = lambda: None
) -> list[int]:
    """Fork the processes of one attempt; returns their ids."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} if world > 1 else {}
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        code = 1
        try:
            os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
            os.setpgid(0, 0)
            before()
            with processes(tiny.CPU) as group, exclusive(folder / f"rank-{rank}"):
                tiny.run(folder, tiny.task(images=images), processes=group, n_workers=n_workers)
            code = 0
        except BaseException as error:  # noqa: BLE001
            sys.stderr.write(f"{rank}: {error!r}\n")
        finally:
            os._exit(code)
    return children


def end(children: list[int], grace: float = 0.0) -> list[int]:
    """Wait for all; their exit codes. What hangs is killed after `grace` seconds, as torchrun does, or an error."""
    codes, limit = [], time.monotonic() + (grace or SLOWEST_S)
    for pid in children:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes.append(os.waitstatus_to_exitcode(status))
                break
            if time.monotonic() > limit:
                kill(pid)
                if not grace:
                    raise TimeoutError("a process hangs")
            time.sleep(0.002)
    return codes


def kill(pid: int) -> None:
    """A process with its loader's workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def results(folder: Path) -> str:
    content = json.dumps([tiny.files(folder), tiny.curve(folder)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_data(folder / "staged")
    return folder


def random_kills(folder: Path, images: int, n_workers: int, world: int, wanted: int, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    start = time.monotonic()
    assert end(attempt(fresh(folder / "reference"), images, n_workers, world)) == [0] * world
    whole = time.monotonic() - start
    reference = results(folder / "reference")
    kills = runs = 0
    equal = True
    while kills < wanted:
        place = fresh(folder / "killed")
        while True:
            children = attempt(place, images, n_workers, world)
            time.sleep(draw.uniform(0.2 * whole, 1.1 * whole))
            # Of several processes sometimes one is killed alone; torchrun then ends the others.
            for victim in children if draw.random() < 0.5 else [draw.choice(children)]:
                kill(victim)
            codes = end(children, GRACE_S)
            if codes == [0] * world:
                break
            kills += 1
        runs += 1
        equal &= results(place) == reference
    return {"kills": kills, "runs": runs, "equal": equal}


class Countdown:
    """Ends this process with SIGKILL at the n-th operation on files; never for n = 0.

    taken: the number of operations so far, in memory that a forked process shares with this one.
    """

    def __init__(self, n: int) -> None:
        self.n, self.taken = n, multiprocessing.RawValue("i", 0)

    def arm(self) -> None:
        """Watch the operations that checkpoints and logs consist of, in this process from now on."""
        checkpoint.save_file = self.tear
        for owner, names in ((Path, ("rename", "replace", "write_text")), (os, ("fsync",)), (shutil, ("rmtree",))):
            for name in names:
                self.watch(owner, name)

    def watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            self.step()
            return original(*arguments, **options)

        setattr(owner, name, watched)

    def step(self, cut: Callable[[], None] = lambda: None) -> None:
        self.taken.value += 1
        if self.taken.value == self.n:
            cut()
            os.kill(os.getpid(), signal.SIGKILL)

    def tear(self, tensors: Any, path: Path) -> None:
        """Writing tensors can be cut in the middle of the file."""
        self.step()
        save_file(tensors, path)
        self.step(lambda: os.truncate(path, path.stat().st_size // 2))


save_file = checkpoint.save_file


def crash_points(folder: Path, images: int, every: int) -> dict[str, Any]:
    """Kill at the first operation of an undisturbed run, at every `every`-th after it, and at the last."""
    count = Countdown(0)
    assert end(attempt(fresh(folder / "reference"), images, 0, 1, count.arm)) == [0]
    reference, last = results(folder / "reference"), count.taken.value
    points = sorted({*range(1, last + 1, every), last})
    equal = True
    for point in points:
        place = fresh(folder / "killed")
        # Whoever ends in another way was not killed where it should have been.
        assert end(attempt(place, images, 0, 1, Countdown(point).arm)) == [-signal.SIGKILL]
        assert end(attempt(place, images, 0, 1)) == [0]
        equal &= results(place) == reference
    return {"points": len(points), "equal": equal}


def main() -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    folder, images = Path(sys.argv[1]), int(sys.argv[2])
    tiny.run(fresh(folder / "warm"), tiny.task(images=8))  # loads what is loaded late, once for all attempts
    if sys.argv[5] == "points":
        outcome = crash_points(folder, images, every=int(sys.argv[6]))
    else:
        outcome = random_kills(folder, images, *map(int, sys.argv[3:7]))
    sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
