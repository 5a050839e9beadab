"""Several processes, one evaluation: what they keep is locked by the one that makes it."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import torch
from ruamel.yaml import YAML

from components.children import child
from components.device import n_processes, threads_each
from components.evaluation.restoring import STATE
from components.params import Params

log = logging.getLogger(__name__)

# Set in the processes that only help: which of them this is.
HELPER = "INVFUSION_HELPER"
# A helper that is asked to stop finishes at most one batch.
STOP_S = 30


def is_helper() -> bool:
    """Whether this process computes for another one, which gathers the results."""
    return HELPER in os.environ


@contextlib.contextmanager
def helpers(params: Params, module: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Within the block further processes run `python -m <module>` on the same parameters, as `runtime.processes` says.

    Each has a GPU of its own where there are any. One that fails is only missed: this process does what is left.
    """
    n = 1 if is_helper() else n_processes(params)
    if n == 1:
        yield
        return
    settings = STATE / f"params-{os.getpid()}.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    YAML(typ="safe", pure=True).dump(params.model_dump(mode="json", by_alias=True), settings)
    command = [sys.executable, "-m", module, *arguments, "--params", str(settings)]
    before, each = torch.get_num_threads(), threads_each(n)
    with contextlib.ExitStack() as stack:
        stack.callback(settings.unlink, missing_ok=True)
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(each)
        for rank in range(1, n):
            environment = {
                HELPER: str(rank),
                "LOCAL_RANK": str(rank % max(torch.cuda.device_count(), 1)),
                "OMP_NUM_THREADS": str(each),
                "TQDM_DISABLE": "1",
            }
            # A helper has nothing to save, and would otherwise say where it was when it was interrupted.
            helper = child(command, os.environ | environment, STOP_S, interruption=signal.SIGTERM, close_fds=False)
            stack.enter_context(helper)
        log.info("%d processes share the batches", n)
        yield
