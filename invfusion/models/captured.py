"""CUDA graphs for sampling: the launches of one network call, recorded once for a batch and replayed at every level."""

from typing import Any

import torch
from torch import Tensor

from invfusion.models.denoiser import Denoiser
from invfusion.models.graphs import recorded
from invfusion.operators.base import Measurement


class CapturedDenoiser:
    """A denoiser in eval mode that replays one CUDA graph while the batch stays the same; for sampling on a GPU.

    Called as a `Denoiser`. Measurement and labels are part of the recording, which is made anew where they change or
    the images' shape does; the weights may change in place. Nothing is differentiated. What is not called is the
    denoiser's own. A call raises `OperatorError` where it cannot be recorded, since it asks for numbers: with operators
    or priors that need conjugate gradients.
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
        _, _, replay, inputs, output, _ = self._recorded
        torch._foreach_copy_(list(inputs), [x, sigma])
        replay()
        return output.clone()  # type: ignore[no-any-return]

    def _is_recorded(self, x: Tensor, sigma: Tensor, *batch: Any) -> bool:
        *known, _, inputs, _, _ = self._recorded
        same = all(a is b for a, b in zip(known, batch, strict=True))
        return same and all(a.shape == b.shape for a, b in zip(inputs, (x, sigma), strict=True))

    def _record(self, x: Tensor, sigma: Tensor, *batch: Any) -> tuple[Any, tuple[Tensor, Tensor], Tensor, Any]:
        """What replays a call, its inputs and output, and what else it reads, which must live as long."""
        self._recorded = ()
        replay, output = recorded(lambda: self.denoiser(x, sigma, *batch), x.device)
        return replay, (x, sigma), output, self.denoiser.preconditioning.conditioned
