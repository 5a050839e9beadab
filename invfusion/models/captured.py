"""CUDA graphs for sampling: the launches of one network call, recorded once for a batch and replayed at every level."""

from typing import Any

import torch
from torch import Tensor

from invfusion.errors import ConfigError
from invfusion.models.denoiser import Denoiser
from invfusion.operators.base import Measurement

# Calls before the recording, in which kernels are chosen, plans made and masks cached.
WARM_UP = 2


class CapturedDenoiser:
    """A denoiser in eval mode that replays one CUDA graph while the batch stays the same; for sampling on a GPU.

    Called as a `Denoiser`. Measurement and labels are part of the recording, which is made anew where they change or
    the images' shape does; the weights may change in place. Nothing is differentiated. What is not called is the
    denoiser's own. Raises `ConfigError` for a model with a Gaussian posterior, whose recording fails.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        if denoiser.prior is not None:
            raise ConfigError(
                "a model with preconditioning 'gaussian' cannot be recorded as a CUDA graph; call it itself"
            )
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
        _, _, graph, inputs, output = self._recorded
        torch._foreach_copy_(list(inputs), [x, sigma])
        graph.replay()
        return output.clone()  # type: ignore[no-any-return]

    def _is_recorded(self, x: Tensor, sigma: Tensor, *batch: Any) -> bool:
        *known, _, inputs, _ = self._recorded
        same = all(a is b for a, b in zip(known, batch, strict=True))
        return same and all(a.shape == b.shape for a, b in zip(inputs, (x, sigma), strict=True))

    def _record(self, x: Tensor, sigma: Tensor, *batch: Any) -> tuple[Any, tuple[Tensor, Tensor], Tensor]:
        self._recorded = ()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.denoiser(x, sigma, *batch)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.denoiser(x, sigma, *batch)
        return graph, (x, sigma), output
