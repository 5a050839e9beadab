"""Commands that run at once, such as trainings, each after those that it needs."""

import contextlib
import logging
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from components.children import child
from components.device import is_on_gpu, threads_each
from components.params import Params

log = logging.getLogger(__name__)

# Between two looks at what runs.
POLL_S = 0.1


def trainings_at_once(params: Params, n_gpus: int) -> int:
    """How many models are trained at once: one for each of so many GPUs, or cores, that a training is to have."""
    n = n_gpus if is_on_gpu(params.runtime.device) else torch.get_num_threads()
    return max(1, n // params.runtime.n_devices)


def run_at_once(
    commands: Mapping[str, Sequence[str]],
    needs: Mapping[str, Collection[str]],
    at_once: int,
    environment: Mapping[str, str],
    patience: int,
    *,
    share_threads: bool,
) -> int:
    """Run named commands, at most so many at once, each after those that it needs, as far as these are among them.

    After a failure none begins, and those that run go on to their end. patience: the seconds that each may take to end
    when it is interrupted, as all are with this process; share_threads: those that run, or begin together, share this
    process's threads. Returns the first exit code that is not 0.
    """
    # What begins the longest chain goes first.
    left = sorted(commands, key=lambda name: -_chain(name, needs))
    running: dict[str, tuple[contextlib.ExitStack, subprocess.Popen[bytes]]] = {}
    code = 0
    try:
        while True:
            ready = [] if code else [name for name in left if {*left, *running}.isdisjoint(needs.get(name, ()))]
            sharing = min(at_once, len(ready) + len(running))
            for name in ready[: at_once - len(running)]:
                left.remove(name)
                threads = {"OMP_NUM_THREADS": str(threads_each(sharing))} if share_threads else {}
                stack = contextlib.ExitStack()
                log.info("%s begins", name)
                running[name] = stack, stack.enter_context(child(commands[name], {**environment, **threads}, patience))
            if not running:
                return code
            time.sleep(POLL_S)
            for name in [name for name, (_, process) in running.items() if process.poll() is not None]:
                stack, process = running.pop(name)
                stack.close()
                if process.returncode:
                    log.error("%s %s", name, _end(process.returncode))
                code = code or process.returncode
    finally:
        # Each may take a while to write its checkpoint, and a host that ends its processes waits for none.
        with ThreadPoolExecutor(max(1, len(running))) as pool:
            list(pool.map(lambda one: one[0].close(), running.values()))


def _chain(name: str, needs: Mapping[str, Collection[str]]) -> int:
    """How many, one after another, wait for it at most."""
    return max((1 + _chain(other, needs) for other, needed in needs.items() if name in needed), default=0)


def _end(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code}, as where memory is short; runtime.processes says how few run at once"
    return f"stopped with exit code {code}; its own message stands above"
