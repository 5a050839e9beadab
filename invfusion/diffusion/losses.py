"""Training objectives. Each draws its randomness from the generator handed in and returns one value per sample."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.components import gram_schmidt
from invfusion.operators.base import Measurement
from invfusion.rng import upload
from invfusion.schema import Config

# A denoiser's forward with all its switches; data-parallel wrappers have the same signature.
Network = Callable[..., Any]


@dataclass(frozen=True)
class Condition:
    """What a network is told beside the noisy image: the measurement, class_labels (B,), augment_labels (B, 9).

    images: seen in training before this batch, for objectives that change on the way; the network is not told.
    """

    measurement: Measurement | None = None
    class_labels: Tensor | None = None
    augment_labels: Tensor | None = None
    images: int = 0

    @property
    def arguments(self) -> tuple[Measurement | None, Tensor | None, Tensor | None]:
        """In the order in which a denoiser takes them."""
        return self.measurement, self.class_labels, self.augment_labels


@dataclass(frozen=True)
class LossOutput:
    """per_sample: (B,), to be averaged over the global batch; logs: (B,) each, detached."""

    per_sample: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


def standard_normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Drawn on the CPU, so that the numbers do not depend on the device."""
    return upload(torch.randn(shape, generator=generator), device)


def squared_error(estimate: Tensor, x: Tensor) -> Tensor:
    """(B,): the mean over channels and pixels."""
    return (estimate - x).square().flatten(1).mean(1)


class DiffusionLoss(Config):
    """Denoising score matching with a learned log-variance (paper Eq. 6; weighting and u(sigma) of EDM2).

    ln sigma ~ N(P_mean, P_std^2), but for a share of sigma = `sigma_max`, where the input tells nothing and the network
    learns the posterior mean; the weights are those of the network's preconditioning. Errors are means over pixels and
    channels, where the paper has sums: the minimiser is the same, and under Adam so is every step, while the value does
    not scale with the image.
    """

    kind: Literal["diffusion"] = "diffusion"
    P_mean: float = -0.8
    P_std: float = Field(default=1.6, gt=0)
    share_at_sigma_max: float = Field(default=0.0, ge=0, lt=1)
    sigma_max: float = Field(default=100.0, gt=0)

    trains_log_variance: ClassVar[bool] = True

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> the loss at freshly drawn noise levels and noise."""
        sigma = upload(self.noise_levels(len(x), generator), x.device)
        return self.at(network, x, condition, sigma, standard_normal(tuple(x.shape), generator, x.device))

    def noise_levels(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) draws of the density."""
        sigma = (self.P_mean + self.P_std * torch.randn(n, generator=generator)).exp()
        if self.share_at_sigma_max == 0:
            return sigma
        return sigma.where(torch.rand(n, generator=generator) >= self.share_at_sigma_max, self.sigma_max)

    def at(self, network: Network, x: Tensor, condition: Condition, sigma: Tensor, noise: Tensor) -> LossOutput:
        """Noise levels (B,) and standard normal noise like x -> weight / exp(u) * mean((D - x)^2) + u."""
        noisy = x + sigma.view(-1, 1, 1, 1) * noise
        denoised, u, weight = network(noisy, sigma, *condition.arguments, return_logvar=True)
        weighted = weight * squared_error(denoised, x)
        return LossOutput(weighted / u.exp() + u, {"weighted_mse": weighted.detach()})


class ConsistencyLoss(Config):
    """Easy consistency tuning of a trained diffusion model: D becomes the map from x_sigma to its trajectory's end.

    Two points of one image with one noise, at sigma and at r < sigma, must have the same estimate; that at r is the
    target, and the image itself where r = 0: |D(x_sigma) - D(x_r)| / (sigma - r), the norm a root mean square with
    `smoothing` below it. ln sigma ~ N(P_mean, P_std^2), and r draws nearer to sigma from stage to stage, each of
    `stage_images` images: r = sigma max(0, 1 - 2^-(stage + 1) (1 + 8 / (1 + e^sigma))). The first stages are a
    diffusion model's own training at low noise. Source: Geng et al. 2024 (arXiv 2406.14548), sections 3 and 4.
    """

    kind: Literal["consistency"] = "consistency"
    P_mean: float = -1.1
    P_std: float = Field(default=2.0, gt=0)
    stage_images: int = Field(default=2**19, ge=1)
    max_stage: int = Field(default=7, ge=0)
    smoothing: float = Field(default=1e-3, gt=0)

    trains_log_variance: ClassVar[bool] = False

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> the distance between the two estimates over that of their levels."""
        sigma = (self.P_mean + self.P_std * torch.randn(len(x), generator=generator)).exp().to(x.device)
        noise = standard_normal(tuple(x.shape), generator, x.device)
        r = self.lower_levels(sigma, min(condition.images // self.stage_images, self.max_stage))
        target = self._target(network, x, noise, r, condition)
        estimate = network(x + sigma.view(-1, 1, 1, 1) * noise, sigma, *condition.arguments)
        error = squared_error(estimate, target)
        distance = (error + self.smoothing**2).sqrt() - self.smoothing
        return LossOutput(distance / (sigma - r), {"squared_distance": error.detach()})

    @staticmethod
    def lower_levels(sigma: Tensor, stage: int) -> Tensor:
        """r (B,) for sigma (B,)."""
        return sigma * (1 - 2.0 ** -(stage + 1) * (1 + 8 * torch.sigmoid(-sigma))).clamp(min=0)

    @staticmethod
    def _target(network: Network, x: Tensor, noise: Tensor, r: Tensor, condition: Condition) -> Tensor:
        # After the block the generators of dropout are as before it: both points see one mask.
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            known = r == 0
            levels = r.where(~known, 1.0)
            target: Tensor = network(x + levels.view(-1, 1, 1, 1) * noise, levels, *condition.arguments)
        return torch.where(known.view(-1, 1, 1, 1), x, target)


class FlowMatchingLoss(Config):
    """Regression to the velocity n - x of the straight path x_t = (1 - t) x + t n, with t uniform below `t_max`.

    In variance-exploding terms, sigma = t / (1 - t) and the velocity is (x_t - D) / t: the squared error of the
    velocity is that of D over t^2, so that the network keeps its preconditioning. `t_min` bounds the weights. Source:
    Lipman et al. 2023 (arXiv 2210.02747), Eq. 23, without their smallest deviation.
    """

    kind: Literal["flow_matching"] = "flow_matching"
    t_min: float = Field(default=0.01, gt=0, lt=1)
    t_max: float = Field(default=0.99, gt=0, lt=1)

    trains_log_variance: ClassVar[bool] = False

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> mean((v - (n - x))^2)."""
        t = (self.t_min + (self.t_max - self.t_min) * torch.rand(len(x), generator=generator)).to(x.device)
        noise, sigma = standard_normal(tuple(x.shape), generator, x.device), t / (1 - t)
        denoised = network(x + sigma.view(-1, 1, 1, 1) * noise, sigma, *condition.arguments)
        error = squared_error(denoised, x)
        return LossOutput(error / t.square(), {"mse": error.detach()})


class MMSELoss(Config):
    """Regression to the posterior mean in one step (paper Eq. 7): the input is pure noise of level sigma."""

    kind: Literal["mmse"] = "mmse"
    sigma: float = Field(default=100.0, gt=0)

    trains_log_variance: ClassVar[bool] = False

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> mean((D - x)^2)."""
        noise = standard_normal(tuple(x.shape), generator, x.device)
        mean = network(self.sigma * noise, x.new_full((len(x),), self.sigma), *condition.arguments)
        error = squared_error(mean, x)
        return LossOutput(error, {"mse": error.detach()})


class InDILoss(Config):
    """Inversion by direct iteration: regression to x from points on the way to it from H_pinv y.

    x_t = (1 - t) x + t (H_pinv y + epsilon n) with t uniform in (0, 1]. The network sees x_t, and t in the place of
    sigma, but neither y nor H. epsilon: noise at the start, the only randomness that a sample has. Source: Delbracio &
    Milanfar 2023, with squared errors; the paper does not say which epsilon it took.
    """

    kind: Literal["indi"] = "indi"
    epsilon: float = Field(default=0.01, ge=0)

    trains_log_variance: ClassVar[bool] = False

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> mean((D - x)^2)."""
        assert condition.measurement is not None, "InDI learns to restore"
        t = (1 - torch.rand(len(x), generator=generator)).to(x.device)
        noise = standard_normal(tuple(x.shape), generator, x.device)
        start = condition.measurement.H_pinv_y + self.epsilon * noise
        x_t = torch.lerp(x, start, t.view(-1, 1, 1, 1))
        restored = network(x_t, t, None, condition.class_labels, condition.augment_labels)
        error = squared_error(restored, x)
        return LossOutput(error, {"mse": error.detach()})


class NPPCLoss(Config):
    """Mean and leading posterior principal components together (paper section 5; Nehme et al. 2023).

    With e = x - mean (no gradient) and orthogonalised directions w_k, the directions maximise the share of the error's
    energy that they capture, p_k^2 = <e, w_k>^2 / (|w_k| |e|)^2, and their lengths learn the standard deviation along
    them, |w_k|^2 ~ <e, w_k / |w_k|>^2. All three terms are means of order one, so no term has to be ramped in:
    the directions start off zero, and the target of the lengths carries no gradient.
    """

    kind: Literal["nppc"] = "nppc"
    sigma: float = Field(default=100.0, gt=0)
    direction_weight: float = Field(default=0.1, ge=0)
    length_weight: float = Field(default=0.1, ge=0)

    trains_log_variance: ClassVar[bool] = False

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> mse + direction_weight * missed energy + length_weight * length error."""
        noise = standard_normal(tuple(x.shape), generator, x.device)
        sigma = x.new_full((len(x),), self.sigma)
        mean, w = network(self.sigma * noise, sigma, *condition.arguments, return_components=True)
        captured, length_error = component_errors(x - mean.detach(), w)
        mse = squared_error(mean, x)
        loss = mse + self.direction_weight * (1 - captured) + self.length_weight * length_error
        return LossOutput(loss, {"mse": mse.detach(), "captured": captured.detach()})


def component_errors(error: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Errors (B, C, H, W), raw directions (B, K, C, H, W) -> captured share of the energy (B,), length error (B,)."""
    flat = error.flatten(1)
    energy = flat.square().sum(1, keepdim=True) + 1e-12
    directions, lengths = gram_schmidt(w)
    shares = (directions.flatten(2) * flat[:, None]).sum(2).square() / energy
    length_error = (lengths.square() / energy - shares.detach()).square().mean(1)
    return shares.sum(1), length_error
