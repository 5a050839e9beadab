"""Images that come in kinds: a mixture of Gaussians around K centres, with one covariance or with one for each.

A single Gaussian mistakes the differences between kinds for variance within them. With S_k the covariance around c_k,

    p(x) = sum_k w_k N(x; c_k, S_k),        E[x | x_sigma, y] = sum_k w'_k E_k[x | x_sigma, y],

where w'_k is the posterior probability of cluster k. Where all share one S, they share the one system (H S_p H^T +
sigma_y^2 I) too: K more right-hand sides, and no further factorisation. K = 1 is the Gaussian prior itself.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from invfusion.errors import ConfigError, ShapeError
from invfusion.gaussian.covariance import Coloured, Covariance, LowRank, colour_combinations, given_noisy
from invfusion.gaussian.posterior import GaussianPosterior
from invfusion.gaussian.solvers import System
from invfusion.operators.base import Measurement


class Clusters(nn.Module):
    """centres: (K, C, H, W); weights: (K,), positive, of sum one; covariances: of images around their centre, one for
    all or one for each."""

    centres: Tensor
    weights: Tensor

    def __init__(self, centres: Tensor, weights: Tensor, covariances: Sequence[Covariance]) -> None:
        super().__init__()
        self.register_buffer("centres", centres.double(), persistent=False)
        self.register_buffer("weights", weights.double(), persistent=False)
        self.covariances = nn.ModuleList(covariances)

    @classmethod
    def fit(cls, images: Tensor, n: int, kind: type[LowRank] | type[Coloured], rank: int, floor: float) -> Self:
        """The centres that k-means finds for images (N, C, H, W) float64, and the covariance of what is left.

        Of `Coloured` images, the centres differ in the combination of the channels that varies most, and in no other:
        a kind is a shape, which comes in any tint, and as light on dark where the images show it as dark on light.
        Raises `ConfigError` without scikit-learn, or with fewer than two images for each cluster.
        """
        _check_number(n, images)
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise ConfigError(NEEDS_SKLEARN) from None
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
        return cls(centres, counts / len(images), [kind.fit(images - centres[labels], rank, floor)])

    @classmethod
    def fit_each(cls, images: Tensor, n: int, rank: int, floor: float) -> Self:
        """Centres of images (N, C, H, W) float64 with a covariance for each, by scikit-learn's
        expectation-maximisation in the `rank` leading principal coordinates; what these leave out is alike for all.

        Raises `ConfigError` without scikit-learn, or with too few images for the rank or the clusters.
        """
        _check_number(n, images)
        try:
            from sklearn.mixture import GaussianMixture
        except ImportError:
            raise ConfigError(NEEDS_SKLEARN) from None
        mean = images.mean(0)
        whole = LowRank.fit(images - mean, rank, floor)
        basis = whole.flat_basis
        found = GaussianMixture(n, reg_covar=floor, random_state=0)
        found.fit(((images - mean).flatten(1) @ basis).cpu().numpy())
        weights, centres, within = (
            torch.from_numpy(values).to(mean) for values in (found.weights_, found.means_, found.covariances_)
        )
        variances, turns = torch.linalg.eigh(within)
        covariances = [
            LowRank((basis @ turn).view(*mean.shape, -1), (values - whole.floor).clamp(min=0), whole.floor.clone())
            for values, turn in zip(variances, turns, strict=True)
        ]
        return cls(mean + (centres @ basis.mT).view(n, *mean.shape), weights, covariances)

    def posterior(self, measurement: Measurement | None, batch_size: int | None = None) -> "ClusteredPosterior":
        """As `GaussianPrior.posterior` and, with None and a batch size, `GaussianPrior.unconditional`."""
        return ClusteredPosterior(self, measurement, batch_size)

    def around(self) -> Iterator[tuple[Covariance, Tensor, Tensor]]:
        """Each covariance with the centres (K', C, H, W) and the weights (K',) of its clusters, in order."""
        n = len(self.covariances)
        for covariance, *its in zip(self.covariances, self.centres.chunk(n), self.weights.chunk(n), strict=True):
            assert isinstance(covariance, Covariance)
            yield covariance, its[0], its[1]

    def tensors(self) -> dict[str, Tensor]:
        """What defines them, float64."""
        return dict(self.named_buffers())


NEEDS_SKLEARN = "finding clusters needs scikit-learn: pip install scikit-learn"


def _check_number(n: int, images: Tensor) -> None:
    if not 2 <= n <= len(images) // 2:
        raise ConfigError(
            f"{len(images)} images form 2 to {len(images) // 2} clusters, not {n}; ask for fewer or add images"
        )


class ClusteredPosterior(GaussianPosterior):
    """The law of B images given their measurements, where they come in clusters; used like a Gaussian's."""

    def __init__(self, clusters: Clusters, measurement: Measurement | None, batch_size: int | None = None) -> None:
        parts = list(clusters.around())
        mean = torch.einsum("k,kchw->chw", clusters.weights, clusters.centres)
        super().__init__(mean, parts[0][0], measurement, batch_size)
        self._parts = [
            _Part(centres, weights.log(), covariance, measurement, self.batch_size)
            for covariance, centres, weights in parts
        ]

    @cached_property
    def variance(self) -> Tensor:
        """The mean posterior variance of a pixel, (B,) float32: within the clusters and between them."""
        return self._total_variance(*self._given_measurement, self._nothing, self._systems_given_y).float()

    def denoise_with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | x_sigma, y] for x_sigma (B, C, H, W), sigma (B,) or (); and the mean variance of a pixel, (B,)."""
        at = [part._at(x, sigma) for part in self._parts]
        p, systems = at[0][0], [system for _, system in at]
        weights, means = self._clusters_given(x.double(), p, systems)
        return _mixed(weights, means).float(), self._total_variance(weights, means, p, systems).float()

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One exact draw for each image, row i from generator i: (B, C, H, W) float32."""
        if len(generators) != self.batch_size:
            raise ShapeError(f"{self.batch_size} images need as many generators, got {len(generators)}")
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        cumulative = self._given_measurement[0].cumsum(1)
        chosen = (uniform.to(cumulative)[:, None] > cumulative[:, :-1]).sum(1)
        laws = [(centre, part.covariance) for part in self._parts for centre in part.centres]
        drawn = torch.empty(self.batch_size, *self.image_shape, device=self.prior_mean.device)
        for k in sorted(set(chosen.tolist())):
            rows = (chosen == k).nonzero()[:, 0].tolist()
            known = None if self._measurement is None else self._measurement.select(rows)
            centre, covariance = laws[k]
            law = GaussianPosterior(centre, covariance, known, len(rows))
            drawn[rows] = law.sample([generators[i] for i in rows])
        return drawn

    @property
    def log_evidence(self) -> Tensor:
        """ln p(y) in nats, (B,) float64."""
        if self._measurement is None:
            return self.prior_mean.new_zeros(self.batch_size)
        logits = [
            part.given(None, self._nothing, part._given_y)[0] - 0.5 * part._given_y.log_determinant()[:, None]
            for part in self._parts
        ]
        return torch.cat(logits, 1).logsumexp(1)

    @cached_property
    def _mean(self) -> Tensor:
        return _mixed(*self._given_measurement)

    @cached_property
    def _given_measurement(self) -> tuple[Tensor, Tensor]:
        """Probability (B, K) and mean (B, K, C, H, W) of each cluster given y alone."""
        return self._clusters_given(None, self._nothing, self._systems_given_y)

    @property
    def _systems_given_y(self) -> list[System | None]:
        return [None if self._measurement is None else part._given_y for part in self._parts]

    def _clusters_given(self, x: Tensor | None, p: Tensor, systems: list[System | None]) -> tuple[Tensor, Tensor]:
        found = [part.given(x, p, system) for part, system in zip(self._parts, systems, strict=True)]
        logits = [logits for logits, _ in found]
        if len(found) > 1:
            # One covariance has one normaliser, which cancels and which not every solver knows.
            logits = [
                each - part.log_normaliser(p, system)[:, None]
                for each, part, system in zip(logits, self._parts, systems, strict=True)
            ]
        return torch.cat(logits, 1).softmax(1), torch.cat([means for _, means in found], 1)

    def _total_variance(self, weights: Tensor, means: Tensor, p: Tensor, systems: list[System | None]) -> Tensor:
        apart = (means - _mixed(weights, means)[:, None]).flatten(2).square().mean(2)
        within = [part._variance(p, system) for part, system in zip(self._parts, systems, strict=True)]
        return (self._of_parts(weights) * torch.stack(within, 1)).sum(1) + (weights * apart).sum(1)

    def _covariance_times(self, v: Tensor) -> Tensor:
        weights, means = self._given_measurement
        apart = (means - self._mean[:, None]).flatten(2)
        between = (v.flatten(2) @ apart.mT * weights[:, None]) @ apart
        within = torch.stack([part._covariance_times(v) for part in self._parts], 1)
        return torch.einsum("bj,bjkchw->bkchw", self._of_parts(weights), within) + between.view_as(v)

    def _of_parts(self, weights: Tensor) -> Tensor:
        """Probabilities of clusters (B, K) -> of covariances (B, J)."""
        return weights.view(len(weights), len(self._parts), -1).sum(2)


class _Part(GaussianPosterior):
    """Clusters with one covariance, given the measurements. centres: (K', C, H, W); log_weights: (K',)."""

    def __init__(
        self, centres: Tensor, log_weights: Tensor, covariance: Covariance, measurement: Measurement | None, n: int
    ) -> None:
        super().__init__(centres[0], covariance, measurement, n)
        self.centres, self.log_weights = centres, log_weights

    def given(self, x: Tensor | None, p: Tensor, system: System | None) -> tuple[Tensor, Tensor]:
        """Log-probability (B, K') but for normalisers and mean (B, K', C, H, W) of each, given x of precision p, y."""
        means = self.centres.expand(self.batch_size, *self.centres.shape)
        logits = self.log_weights.expand(self.batch_size, -1)
        if x is not None:
            gap = x[:, None] - means
            moved = self.covariance.filter(gap, p, lambda c, p: c * p / (1 + c * p))
            # 1 / (c + sigma^2) = p (1 - c p / (1 + c p)).
            logits = logits - 0.5 * p[:, None] * (gap * (gap - moved)).flatten(2).sum(2)
            means = means + moved
        if system is not None:
            H = self._exact[1]
            gap = self._seen - H.H(means)
            u = system.solve(gap)
            logits = logits - 0.5 * (gap * u).flatten(2).sum(2)
            means = means + self.covariance.filter(H.H_adjoint(u), p, given_noisy)
        return logits, means

    def log_normaliser(self, p: Tensor, system: System | None) -> Tensor:
        """What `given` leaves out of the logarithms, but for terms that know nothing of the covariance, (B,)."""
        noisy = self.prior_mean.numel() * self.covariance.mean_of(p, lambda c, p: (c * p).log1p())
        return 0.5 * (noisy if system is None else noisy + system.log_determinant())

    @cached_property
    def _seen(self) -> Tensor:
        """What of y lies in the range of H, (B, 1, *M): noise outside of it speaks for no cluster."""
        y, H, _ = self._exact
        return H.H(H.H_pinv(y[:, None]))


def _mixed(weights: Tensor, means: Tensor) -> Tensor:
    return torch.einsum("bk,bkchw->bchw", weights, means)
