"""CUDA graphs for sampling: the launches of one network call, recorded once for a batch and replayed at every level."""

from typing import Any

import torch
from torch import Tensor

from invfusion.models.denoiser import Denoiser
from invfusion.operators.base import Measurement

# Calls before the recording, in which kernels are chosen, plans made and masks cached.
WARM_UP = 2


class CapturedDenoiser:
    """A denoiser in eval mode that replays one CUDA graph while the batch stays the same; for sampling on a GPU.

    Called as a `Denoiser`. Measurement and labels are part of the recording, which is made anew where they change or
    the images' shape does; the weights may change in place. Nothing is differentiated. What is not called is the
    denoiser's own. A Gaussian posterior that conjugate gradients solve cannot be recorded: they look at residuals.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self._recorded: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), sigma (B,) -> (B, C, H, W), in memory of its own."""
        batch = (measurement, class_labels)
        if not self._recorded or not self._is_recorded(x, sigma, *batch):
            self._recorded = (*batch, *self._record(x.clone(), sigma.clone(), *batch))
        *_, graph, inputs, output = self._recorded
        torch._foreach_copy_(list(inputs), [x, sigma])
        graph.replay()
        return output.clone()  # type: ignore[no-any-return]

    def _is_recorded(self, x: Tensor, sigma: Tensor, *batch: Any) -> bool:
        measurement, labels, *_, inputs, _ = self._recorded
        same = all(a is b for a, b in zip((measurement, labels), batch, strict=True))
        return same and all(a.shape == b.shape for a, b in zip(inputs, (x, sigma), strict=True))

    def _record(self, x: Tensor, sigma: Tensor, *batch: Any) -> tuple[Any, ...]:
        """What the recording reads and the denoiser may forget meanwhile, the graph, its inputs and its output."""
        self._recorded = ()
        shared = self.denoiser.preconditioning.shared(batch[0], len(x))
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.denoiser(x, sigma, *batch)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.denoiser(x, sigma, *batch)
        return shared, graph, (x, sigma), output
