"""The ideal network: the exact denoiser of a known prior, with and without a measurement."""

import torch
from torch import Tensor

from invfusion.operators import Measurement
from invfusion.oracle.mixture import GaussianMixture


class ExactDenoiser:
    """E[x | x_sigma] of a prior, and E[x | x_sigma, y, H] where a measurement is given; called like any denoiser.

    The posterior of the last measurement is kept, so that a sampler's many calls factorise its operators once.
    Gradients with respect to the noisy image are exact too. n_components: how many directions `components` gives.
    """

    n_classes = 0

    def __init__(self, prior: GaussianMixture, n_components: int = 3) -> None:
        self.prior = prior
        self.n_components = n_components
        self._last: tuple[Measurement, GaussianMixture] | None = None

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,  # noqa: ARG002 - a prior has no classes
    ) -> Tensor:
        """x (B, C, H, W) at noise levels sigma (B,) or (), positive -> float32 (B, C, H, W)."""
        return self.posterior(x, sigma, measurement).mean.to(x.device, torch.float32)

    def components(
        self,
        x: Tensor,
        sigma: Tensor,
        measurement: Measurement | None = None,
        class_labels: Tensor | None = None,  # noqa: ARG002 - a prior has no classes
    ) -> tuple[Tensor, Tensor]:
        """The mean (B, C, H, W), and principal components (B, n_components, C, H, W) as long as their deviations."""
        posterior = self.posterior(x, sigma, measurement)
        directions, stds = posterior.principal_components(self.n_components)
        scaled = directions * stds[:, :, None, None, None]
        return posterior.mean.to(x.device, torch.float32), scaled.to(x.device, torch.float32)

    def posterior(self, x: Tensor, sigma: Tensor, measurement: Measurement | None = None) -> GaussianMixture:
        """The exact law of the clean images given x (B, C, H, W), sigma (B,) and the measurement."""
        known = self.prior if measurement is None else self._given(measurement)
        return known.given_noisy(x, sigma)

    def _given(self, measurement: Measurement) -> GaussianMixture:
        if self._last is None or self._last[0] is not measurement:
            self._last = (measurement, self.prior.given(measurement))
        return self._last[1]
