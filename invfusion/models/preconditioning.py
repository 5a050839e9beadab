"""What surrounds the raw network: D = estimate + scale * F(images, noise), with F seen through what y leaves open.

`EDM` is the exact answer for a prior N(0, sigma_data^2 I) of which nothing was measured. `Gaussian` is the exact answer
for the best Gaussian prior of the training images, given the noisy image and the measurement; F learns the rest.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from invfusion.diffusion.precond import precondition
from invfusion.errors import ConfigError, OperatorError
from invfusion.gaussian import GaussianPosterior, GaussianPrior
from invfusion.models.config import DenoiserConfig
from invfusion.models.graphs import Replays, can_record, is_differentiated
from invfusion.operators.base import LinearOperator, Measurement

# The least variance that weights an error: where nothing is left open, the rounding that remains is no error.
LEAST_VARIANCE = 1e-10
# Products with the posterior covariance for a start of NPPC's directions: on the default run's families, six capture
# 99.98% on the average, and 98.6% at the least, of the variance that sixty do.
SUBSPACE_ITERATIONS = 6

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """Of one call of the network, float32.

    images: what the network reads, (B, in_channels, H, W); noise: ln sigma / 4, (B,) or (1,); estimate: (B, C, H, W);
    scale: (B, 1, 1, 1); weight: of squared errors in the loss, (B,) or (1,); leave_open: takes from an image what the
    measurement determines; directions: the scaled principal directions (B, K, C, H, W) from which NPPC starts, or None.
    """

    images: Tensor
    noise: Tensor
    estimate: Tensor
    scale: Tensor
    weight: Tensor
    leave_open: Callable[[Tensor], Tensor] | None = None
    directions: Callable[[int], Tensor] | None = None


class Preconditioning(nn.Module, ABC):
    """How a raw network becomes a denoiser. conditioned: the measurement that was conditioned on last, but for
    replays, the posterior, and whether that was in inference mode; or None."""

    conditioned: tuple[Measurement | None, GaussianPosterior, bool] | None = None

    @abstractmethod
    def forward(self, x: Tensor, sigma: Tensor, measurement: Measurement | None) -> Surroundings:
        """x (B, C, H, W) float32, sigma (B,) or (1,)."""


class EDM(Preconditioning):
    """The factors of Karras et al. 2022, Table 1, with H_pinv y beside the image in conditional models."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, sigma: Tensor, measurement: Measurement | None) -> Surroundings:
        factors = precondition(sigma, self.config.sigma_data)
        images = factors.in_ * x
        if self.config.variant != "unconditional":
            hint = torch.zeros_like(x) if measurement is None else measurement.image.to(x.dtype)
            images = torch.cat((images, hint), dim=1)
        return Surroundings(images, factors.noise, factors.skip * x, factors.out, factors.weight)


class Gaussian(Preconditioning):
    """The posterior denoiser of a Gaussian prior; the scale is the root mean square of its posterior deviations.

    The network reads the noisy image as its deviation from E[x | y], and beside it E[x | y] itself. The unconditional
    model is told nothing of y, Palette's Gaussian nothing either, since it must not know H: its network sees H_pinv y.
    """

    def __init__(self, config: DenoiserConfig, prior: GaussianPrior) -> None:
        super().__init__()
        prior.check_fits(config.image_shape)
        self.config = config
        self.prior = prior
        self._replays = Replays()
        # Operators, of which recording failed.
        self._not_replayed: set[type[LinearOperator]] = set()

    def forward(self, x: Tensor, sigma: Tensor, measurement: Measurement | None) -> Surroundings:
        known = measurement if self.config.variant == "invfusion" else None
        sigma = sigma.float().expand(len(x))
        given = None
        if known is not None and self._is_replayed(x, sigma, known):
            given = self._replayed(x, sigma, known)
        if given is None:
            given = self._given(x, sigma, self._posterior(known, len(x)), measurement)
        images, estimate, variance = given
        scale = variance.sqrt().view(-1, 1, 1, 1)
        return Surroundings(
            images=images,
            noise=sigma.log() / 4,
            estimate=estimate,
            scale=scale,
            weight=1 / variance.clamp(min=LEAST_VARIANCE),
            leave_open=None if known is None or known.y.numel() == 0 else lambda f: left_open(f, known, scale),
            directions=lambda n: self._directions(self._posterior(known, len(x)), n),
        )

    def _given(
        self, x: Tensor, sigma: Tensor, posterior: GaussianPosterior, measurement: Measurement | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the network reads, the estimate, and the mean posterior variance of a pixel, (B,)."""
        estimate, variance = posterior.denoise_with_variance(x, sigma)
        spread = (sigma.square() + posterior.variance).rsqrt().view(-1, 1, 1, 1)
        images = spread * (x - posterior.mean)
        if self.config.variant != "unconditional":
            images = torch.cat((images, self._hint(x, posterior, measurement)), dim=1)
        return images, estimate, variance

    def _is_replayed(self, x: Tensor, sigma: Tensor, measurement: Measurement) -> bool:
        """Training conditions each batch anew, by thousands of small kernels, which a GPU would wait for.

        NPPC needs the posterior itself.
        """
        learns = self.training and torch.is_grad_enabled() and self.config.n_components == 0
        operator = measurement.operator
        if not learns or not can_record(x) or type(operator) in self._not_replayed:
            return False
        if self.prior.asks_for_values(operator):
            return False
        return not is_differentiated(x, sigma, measurement)

    def _replayed(self, x: Tensor, sigma: Tensor, measurement: Measurement) -> tuple[Tensor, ...] | None:
        """What `_given` gives; None where it cannot be recorded, which a line of the log says once."""
        reads = list(self.prior.tensors().values())
        try:
            return self._replays(self._conditioned_anew, reads, x, sigma, measurement)
        except OperatorError as problem:
            kind = type(measurement.operator)
            self._not_replayed.add(kind)
            log.warning("training is slower than it could be on the operator '%s': %s", kind.kind, problem)
            return None

    def _conditioned_anew(self, x: Tensor, sigma: Tensor, measurement: Measurement) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            posterior = self.prior.refined((len(x), *self.config.image_shape), measurement)
            return self._given(x, sigma, posterior, measurement)

    def _hint(self, x: Tensor, posterior: GaussianPosterior, measurement: Measurement | None) -> Tensor:
        if self.config.variant == "invfusion":
            return posterior.mean
        return torch.zeros_like(x) if measurement is None else measurement.H_pinv_y.to(x.dtype)

    def _posterior(self, measurement: Measurement | None, batch_size: int) -> GaussianPosterior:
        """A sampler's many calls condition on a measurement once."""
        last, in_inference = self.conditioned, torch.is_inference_mode_enabled()
        # What a posterior keeps of inference mode takes no part in a backward pass.
        if last is not None and last[0] is measurement and last[1].batch_size == batch_size and last[2] == in_inference:
            return last[1]
        posterior = self.prior.refined((batch_size, *self.config.image_shape), measurement)
        self.conditioned = measurement, posterior, in_inference
        return posterior

    @staticmethod
    def _directions(posterior: GaussianPosterior, n: int) -> Tensor:
        directions, deviations = posterior.principal_components(n, SUBSPACE_ITERATIONS)
        return directions * deviations[:, :, None, None, None]


def preconditioning_for(config: DenoiserConfig, prior: GaussianPrior | None) -> Preconditioning:
    """What the config names. Raises `ConfigError` where the prior is missing, superfluous or of other images."""
    if config.preconditioning == "edm":
        if prior is not None:
            raise ConfigError("a model with preconditioning 'edm' takes no Gaussian prior; set it to 'gaussian'")
        return EDM(config)
    if prior is None:
        raise ConfigError(
            "a model with preconditioning 'gaussian' needs its prior: GaussianPrior.fit(images, rank=...) of the "
            "training images"
        )
    return Gaussian(config, prior)


def left_open(images: Tensor, measurement: Measurement, scale: Tensor) -> Tensor:
    """Images (B, *K, C, H, W) without what the measurement determines, along each right singular vector of H.

    Nothing of what a noiseless measurement sees is left: H of the result is zero. With noise, the share l / (l + q^2)
    is, with l = sigma_y / scale: all where the noise is large against the deviations (scale), none where it is small.
    """
    operator = measurement.operator
    seen = operator.H(images)
    if not measurement.is_noisy:
        return images - operator.H_pinv(seen)
    # Of an image of which nothing is open the scale is 0, and the noise with it.
    ratio = measurement.sigma_y.to(scale) / scale.flatten().clamp(min=torch.finfo(scale.dtype).tiny)
    return images - operator.H_adjoint(operator.damped_inverse(seen, ratio))
