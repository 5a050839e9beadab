"""Images that come in kinds: a mixture of Gaussians with one covariance around each of K centres.

A single Gaussian mistakes the differences between kinds for variance within them. With S the covariance around each,

    p(x) = sum_k w_k N(x; c_k, S),        E[x | x_sigma, y] = sum_k w'_k E_k[x | x_sigma, y],

where w'_k is the posterior probability of cluster k, and all E_k share the one system (H S_p H^T + sigma_y^2 I): K more
right-hand sides, and no further factorisation. K = 1 is the Gaussian prior itself.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from invfusion.errors import ConfigError
from invfusion.gaussian.covariance import Coloured, Covariance, LowRank, colour_combinations, given_noisy
from invfusion.gaussian.posterior import GaussianPosterior
from invfusion.gaussian.solvers import System
from invfusion.operators.base import Measurement


class Clusters(nn.Module):
    """centres: (K, C, H, W); weights: (K,), positive, of sum one; covariance: of images around their centre."""

    centres: Tensor
    weights: Tensor

    def __init__(self, centres: Tensor, weights: Tensor, covariance: Covariance) -> None:
        super().__init__()
        self.register_buffer("centres", centres.double(), persistent=False)
        self.register_buffer("weights", weights.double(), persistent=False)
        self.covariance = covariance

    @classmethod
    def fit(cls, images: Tensor, n: int, kind: type[LowRank] | type[Coloured], rank: int, floor: float) -> Self:
        """The centres that k-means finds for images (N, C, H, W) float64, and the covariance of what is left.

        Of `Coloured` images, the centres differ in the combination of the channels that varies most, and in no other:
        a kind is a shape, which comes in any tint, and as light on dark where the images show it as dark on light.
        Raises `ConfigError` without scikit-learn, or with fewer than two images for each cluster.
        """
        if not 2 <= n <= len(images) // 2:
            raise ConfigError(
                f"{len(images)} images form 2 to {len(images) // 2} clusters, not {n}; ask for fewer or add images"
            )
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise ConfigError("finding clusters needs scikit-learn: pip install scikit-learn") from None
        mean = images.mean(0)
        shapes = images - mean
        if kind is Coloured:
            colour = colour_combinations(shapes)[0].view(-1, 1, 1)
            shapes = colour * (colour * shapes).sum(1, keepdim=True)
            images, shapes = torch.cat((images, images - 2 * shapes)), torch.cat((shapes, -shapes))
        found = KMeans(n, n_init=1, random_state=0).fit_predict(shapes.flatten(1).cpu().numpy())
        labels = torch.from_numpy(found).long().to(images.device)
        counts = labels.bincount(minlength=n)
        sums = torch.zeros(n, *mean.shape, dtype=mean.dtype, device=mean.device).index_add(0, labels, shapes)
        centres = mean + sums / counts.view(-1, 1, 1, 1)
        return cls(centres, counts / len(images), kind.fit(images - centres[labels], rank, floor))

    def posterior(self, measurement: Measurement | None, batch_size: int | None = None) -> "ClusteredPosterior":
        """As `GaussianPrior.posterior` and, with None and a batch size, `GaussianPrior.unconditional`."""
        return ClusteredPosterior(self, measurement, batch_size)

    def tensors(self) -> dict[str, Tensor]:
        """What defines them, float64."""
        return {"centres": self.centres, "weights": self.weights, **dict(self.covariance.named_buffers())}


class ClusteredPosterior(GaussianPosterior):
    """The law of B images given their measurements, where they come in clusters; used like a Gaussian's."""

    def __init__(self, clusters: Clusters, measurement: Measurement | None, batch_size: int | None = None) -> None:
        mean = torch.einsum("k,kchw->chw", clusters.weights, clusters.centres)
        super().__init__(mean, clusters.covariance, measurement, batch_size)
        self.centres, self.log_weights = clusters.centres, clusters.weights.log()

    @cached_property
    def variance(self) -> Tensor:
        """The mean posterior variance of a pixel, (B,) float32: within the clusters and between them."""
        system = None if self._measurement is None else self._given_y
        return self._total_variance(*self._given_measurement, self._nothing, system).float()

    def denoise_with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | x_sigma, y] for x_sigma (B, C, H, W), sigma (B,) or (); and the mean variance of a pixel, (B,)."""
        p, system = self._at(x, sigma)
        weights, means = self._clusters_given(x.double(), p, system)
        return _mixed(weights, means).float(), self._total_variance(weights, means, p, system).float()

    @property
    def log_evidence(self) -> Tensor:
        """ln p(y) in nats, (B,) float64."""
        if self._measurement is None:
            return self.prior_mean.new_zeros(self.batch_size)
        y, H, _ = self._exact
        inside = H.H(H.H_pinv(y[:, None] - H.H(self.centres.expand(self.batch_size, *self.centres.shape))))
        energy = (inside * self._given_y.solve(inside)).flatten(2).sum(2)
        return (self.log_weights - 0.5 * energy).logsumexp(1) - 0.5 * self._given_y.log_determinant()

    @cached_property
    def _mean(self) -> Tensor:
        return _mixed(*self._given_measurement)

    @cached_property
    def _given_measurement(self) -> tuple[Tensor, Tensor]:
        """Probability (B, K) and mean (B, K, C, H, W) of each cluster given y alone."""
        return self._clusters_given(None, self._nothing, None if self._measurement is None else self._given_y)

    def _clusters_given(self, x: Tensor | None, p: Tensor, system: System | None) -> tuple[Tensor, Tensor]:
        means = self.centres.expand(self.batch_size, *self.centres.shape)
        logits = self.log_weights.expand(self.batch_size, -1)
        if x is not None:
            gap = x[:, None] - means
            moved = self.covariance.filter(gap, p, lambda c, p: c * p / (1 + c * p))
            # 1 / (c + sigma^2) = p (1 - c p / (1 + c p)).
            logits = logits - 0.5 * p[:, None] * (gap * (gap - moved)).flatten(2).sum(2)
            means = means + moved
        if system is not None:
            y, H, _ = self._exact
            gap = y[:, None] - H.H(means)
            u = system.solve(gap)
            logits = logits - 0.5 * (gap * u).flatten(2).sum(2)
            means = means + self.covariance.filter(H.H_adjoint(u), p, given_noisy)
        return logits.softmax(1), means

    def _total_variance(self, weights: Tensor, means: Tensor, p: Tensor, system: System | None) -> Tensor:
        apart = (means - _mixed(weights, means)[:, None]).flatten(2).square().mean(2)
        return self._variance(p, system) + (weights * apart).sum(1)

    def _covariance_times(self, v: Tensor) -> Tensor:
        weights, means = self._given_measurement
        apart = (means - self._mean[:, None]).flatten(2)
        between = (v.flatten(2) @ apart.mT * weights[:, None]) @ apart
        return super()._covariance_times(v) + between.view_as(v)

    def _centre(self, generators: Sequence[torch.Generator]) -> Tensor:
        """That of a cluster drawn for each image, (B, C, H, W)."""
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        cumulative = self._given_measurement[0].cumsum(1)
        return self.centres[(uniform.to(cumulative)[:, None] > cumulative[:, :-1]).sum(1)]


def _mixed(weights: Tensor, means: Tensor) -> Tensor:
    return torch.einsum("bk,bkchw->bchw", weights, means)
