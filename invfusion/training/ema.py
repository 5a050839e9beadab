"""Exponential moving average of the weights, with the half-life counted in images."""

import torch
from torch import Tensor, nn


class EMA:
    """The averaged parameters of a model, with its buffers, which training does not change.

    The half-life ramps up with the number of images seen, min(half_life, rampup * nimg), so that the random initial
    weights are forgotten fast (EDM2; the ratio multiplies).
    """

    def __init__(self, model: nn.Module, half_life: float, rampup: float) -> None:
        self.half_life = half_life
        self.rampup = rampup
        self.weights = {name: t.detach().clone() for name, t in model.state_dict().items()}

    def beta(self, nimg: int, batch_size: int) -> float:
        """The decay of the update by the batch with which `nimg` images have been seen."""
        half_life = min(self.half_life, nimg * self.rampup)
        return 0.5 ** (batch_size / half_life) if half_life > 0 else 0.0

    @torch.no_grad()
    def update(self, model: nn.Module, nimg: int, batch_size: int) -> None:
        """Move the average towards the model's weights."""
        live = dict(model.named_parameters())
        averaged = [self.weights[name] for name in live]
        torch._foreach_lerp_(averaged, list(live.values()), 1 - self.beta(nimg, batch_size))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take saved averages."""
        self.weights = {name: weights[name].to(own.device) for name, own in self.weights.items()}
