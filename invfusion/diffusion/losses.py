"""Training objectives. Each draws its randomness from the generator handed in and returns one value per sample."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.components import gram_schmidt
from invfusion.operators.base import Measurement
from invfusion.schema import Config


@dataclass(frozen=True)
class LossOutput:
    """per_sample: (B,), to be averaged over the global batch; logs: (B,) each, detached."""

    per_sample: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


def _normal(shape: torch.Size | tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator).to(device)


def _squared_error(estimate: Tensor, x: Tensor) -> Tensor:
    return (estimate - x).square().flatten(1).mean(1)


class DiffusionLoss(Config):
    """Denoising score matching with a learned log-variance (paper Eq. 6; weighting and u(sigma) of EDM2).

    ln sigma ~ N(P_mean, P_std^2). Errors are means over pixels and channels, so the value does not scale with the image.
    """

    kind: Literal["diffusion"] = "diffusion"
    P_mean: float = -0.8
    P_std: float = Field(default=1.6, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)

    def __call__(
        self, denoiser: Any, x: Tensor, measurement: Measurement | None, *, generator: torch.Generator,
        class_labels: Tensor | None = None, augment_labels: Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        """x (B, C, H, W) in [-1, 1] -> lambda(sigma) / exp(u) * mean((D - x)^2) + u, per sample."""
        sigma = (self.P_mean + self.P_std * _normal((len(x),), generator, x.device)).exp()
        noise = _normal(x.shape, generator, x.device)
        denoised, u = denoiser(
            x + sigma.view(-1, 1, 1, 1) * noise, sigma, measurement, class_labels, augment_labels, return_logvar=True
        )
        weight = (sigma.square() + self.sigma_data**2) / (sigma * self.sigma_data).square()
        weighted = weight * _squared_error(denoised, x)
        return LossOutput(weighted / u.exp() + u, {"weighted_mse": weighted.detach()})


class MMSELoss(Config):
    """Regression to the posterior mean in one step (paper Eq. 7): the input is pure noise of level sigma."""

    kind: Literal["mmse"] = "mmse"
    sigma: float = Field(default=100.0, gt=0)

    def __call__(
        self, denoiser: Any, x: Tensor, measurement: Measurement | None, *, generator: torch.Generator,
        class_labels: Tensor | None = None, augment_labels: Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        """x (B, C, H, W) -> mean((D - x)^2), per sample."""
        sigma = x.new_full((len(x),), self.sigma)
        noise = self.sigma * _normal(x.shape, generator, x.device)
        denoised, u = denoiser(noise, sigma, measurement, class_labels, augment_labels, return_logvar=True)
        error = _squared_error(denoised, x)
        # The log-variance head has no part in this loss, but stays in the graph: distributed training wants it there.
        return LossOutput(error + 0 * u, {"mse": error.detach()})


class NPPCLoss(Config):
    """Mean and leading posterior principal components together (paper section 5; Nehme et al. 2023).

    With e = (x - mean) / |x - mean| and orthogonalised directions w_k: the directions maximise the captured energy
    p_k^2 = <e, w_k/|w_k|>^2, and their lengths learn the standard deviation along them, |w_k|^2 ~ <x - mean, w_k/|w_k|>^2.
    `ramp_images` is how many images the terms take to come in, one after the other.
    """

    kind: Literal["nppc"] = "nppc"
    sigma: float = Field(default=100.0, gt=0)
    direction_weight: float = Field(default=0.1, ge=0)
    length_weight: float = Field(default=0.01, ge=0)

    def __call__(
        self, denoiser: Any, x: Tensor, measurement: Measurement | None, *, generator: torch.Generator,
        class_labels: Tensor | None = None, augment_labels: Tensor | None = None,
    ) -> LossOutput:  # fmt: skip
        """x (B, C, H, W) -> mse + direction_weight * (1 - captured) + length_weight * length error, per sample."""
        sigma = x.new_full((len(x),), self.sigma)
        noise = self.sigma * _normal(x.shape, generator, x.device)
        mean, w = denoiser(noise, sigma, measurement, class_labels, augment_labels, return_components=True)
        error = (x - mean.detach()).flatten(1)
        energy = error.square().sum(1, keepdim=True) + 1e-12
        directions, lengths = gram_schmidt(w)
        captured = torch.einsum("bkd,bd->bk", directions.flatten(2), error).square() / energy
        missed = 1 - captured.sum(1)
        length_error = (lengths.square() / energy - captured.detach()).square().mean(1)
        mse = _squared_error(mean, x)
        loss = mse + self.direction_weight * missed + self.length_weight * length_error
        return LossOutput(loss, {"mse": mse.detach(), "captured": captured.sum(1).detach()})
