"""The operators of micro-batches, drawn ahead of their use by background threads."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import torch

from invfusion.measuring import draw_operator
from invfusion.operators.base import LinearOperator
from invfusion.training.task import STREAMS, Task

# Micro-batches that each thread is ahead.
DEPTH = 2


@dataclass
class OperatorDraws:
    """The operator of each micro-batch on the device, ready to use.

    image_shape: (C, H, W); stride: images from one micro-batch of this process to its next; n_threads: background
    threads (0: drawn when asked for). Each draw depends on (seed, image count) alone, so threads change no result.
    """

    task: Task
    image_shape: tuple[int, int, int]
    stride: int
    device: torch.device
    n_threads: int = 0
    _pending: dict[int, "Future[LinearOperator | None]"] = field(default_factory=dict)

    def __call__(self, index: int) -> LinearOperator | None:
        """The operator of the micro-batch that begins at image count `index`; None for unconditional training."""
        if self.n_threads == 0 or self.task.degradation is None:
            return self._draw(index)
        for n in range(index, index + self.stride * (1 + DEPTH * self.n_threads), self.stride):
            if n not in self._pending:
                self._pending[n] = self._threads.submit(self._draw, n)
        return self._pending.pop(index).result()

    def close(self) -> None:
        """End the threads; what they had drawn is dropped."""
        self._pending.clear()
        if self.n_threads:
            self._threads.shutdown(cancel_futures=True)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        # On CUDA the first call of torch.linalg loads its library, which is not thread-safe: two threads that begin
        # with an inverse at once fail with "lazy wrapper should be called at most once". So it is called here before.
        torch.linalg.cholesky(torch.eye(1, device=self.device))
        return ThreadPoolExecutor(self.n_threads, thread_name_prefix="operator-draws")

    def _draw(self, index: int) -> LinearOperator | None:
        task = self.task
        if task.degradation is None:
            return None
        size = task.config.micro_batch_size
        operator = draw_operator(task.degradation, size, self.image_shape, index, task.seed, STREAMS)
        return operator.to(self.device).prepare()
