"""Images that come in kinds: a mixture of Gaussians around K centres, with one covariance or with one for each.

A single Gaussian mistakes the differences between kinds for variance within them. With S_k the covariance around c_k,

    p(x) = sum_k w_k N(x; c_k, S_k),        E[x | x_sigma, y] = sum_k w'_k E_k[x | x_sigma, y],

where w'_k is the posterior probability of cluster k. Where all share one S, they share the one system (H S_p H^T +
sigma_y^2 I) too: K more right-hand sides, and no further factorisation. K = 1 is the Gaussian prior itself.

E_k is linear in c_k: it differs from that around another centre c by L (c_k - c), which knows neither x nor y. Where
the centres differ in one combination of the channels, and the operator treats the channels alike, L acts on images of
that one channel: a third of the numbers, and a third of the work for each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from invfusion.errors import ConfigError, ShapeError
from invfusion.gaussian.covariance import Coloured, Covariance, LowRank, colour_combinations, given_noisy, kept
from invfusion.gaussian.posterior import GaussianPosterior
from invfusion.gaussian.shapes import Shapes
from invfusion.gaussian.solvers import Blocks, System, aligned_to, system_of_first
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
        Raises `ConfigError` without scikit-learn, with fewer than two images for each cluster, or with fewer images
        that differ than clusters.
        """
        _check_number(n, images)
        try:
            from sklearn.cluster import KMeans
        except ImportError:
            raise ConfigError(NEEDS_SKLEARN) from None
        mean = images.mean(0)
        shapes = images - mean
        colours = colour_combinations(shapes) if kind is Coloured else None
        if colours is not None:
            colour = colours[0].view(-1, 1, 1)
            shapes = colour * (colour * shapes).sum(1, keepdim=True)
            images, shapes = torch.cat((images, images - 2 * shapes)), torch.cat((shapes, -shapes))
        found = KMeans(n, n_init=1, random_state=0).fit_predict(shapes.flatten(1).cpu().numpy())
        labels = torch.from_numpy(found).long().to(images.device)
        counts = labels.bincount(minlength=n)
        if not bool(counts.all()):
            raise ConfigError(f"the images differ too little for {n} clusters: {int((counts == 0).sum())} stay empty")
        sums = torch.zeros(n, *mean.shape, dtype=mean.dtype, device=mean.device).index_add(0, labels, shapes)
        centres = mean + sums / counts.view(-1, 1, 1, 1)
        left = images - centres[labels]
        within = LowRank.fit(left, rank, floor) if colours is None else Coloured.fit(left, rank, floor, colours)
        return cls(centres, counts / len(images), [within])

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

    @cached_property
    def differ_in_one_channel(self) -> bool:
        """Whether the centres differ in the first combination of the channels alone."""
        covariance = self.covariances[0]
        if len(self.covariances) > 1 or not isinstance(covariance, Coloured):
            return False
        beyond = torch.einsum("jc,kchw->kjhw", covariance.colours[1:], self.centres - self.centres[0])
        return float(beyond.abs().max()) < ONE_CHANNEL

    def tensors(self) -> dict[str, Tensor]:
        """What defines them, float64."""
        return dict(self.named_buffers())


# Centres that differ by no more than this in other combinations of the channels differ in the first alone.
ONE_CHANNEL = 1e-9
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
            _Part(centres, weights.log(), covariance, measurement, self.batch_size, clusters.differ_in_one_channel)
            for covariance, centres, weights in parts
        ]

    @cached_property
    def variance(self) -> Tensor:
        """The mean posterior variance of a pixel, (B,) float32: within the clusters and between them."""
        return self._total_variance(self._given_measurement, self._nothing, self._systems_given_y).float()

    def denoise_with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | x_sigma, y] for x_sigma (B, C, H, W), sigma (B,) or (); and the mean variance of a pixel, (B,)."""
        at = [part._at(x, sigma) for part in self._parts]
        p, systems = at[0][0], [system for _, system in at]
        found = self._clusters_given(x.double(), p, systems)
        return found.mean.float(), self._total_variance(found, p, systems).float()

    def sample(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One exact draw for each image, row i from generator i: (B, C, H, W) float32."""
        if len(generators) != self.batch_size:
            raise ShapeError(f"{self.batch_size} images need as many generators, got {len(generators)}")
        uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        cumulative = self._given_measurement.probabilities.cumsum(1)
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
            part.given(None, self._nothing, part._given_y).logits - 0.5 * part._given_y.log_determinant()[:, None]
            for part in self._parts
        ]
        return torch.cat(logits, 1).logsumexp(1)

    @cached_property
    def _mean(self) -> Tensor:
        return self._given_measurement.mean

    @cached_property
    def _given_measurement(self) -> "_Found":
        """What y alone says of the clusters."""
        return self._clusters_given(None, self._nothing, self._systems_given_y)

    @cached_property
    def _apart(self) -> list[Tensor]:
        """How, given y alone, the clusters' means differ from that of all with the same covariance, as shapes."""
        return [part.apart(its) for part, its in zip(self._parts, self._given_measurement.parts, strict=True)]

    @property
    def _systems_given_y(self) -> list[System | None]:
        return [None if self._measurement is None else part._given_y for part in self._parts]

    def _clusters_given(self, x: Tensor | None, p: Tensor, systems: list[System | None]) -> "_Found":
        parts = [part.given(x, p, system) for part, system in zip(self._parts, systems, strict=True)]
        evidence = [part.logits.logsumexp(1) for part in parts]
        if len(parts) > 1:
            # One covariance has one normaliser, which cancels and which not every solver knows.
            evidence = [
                each - part.log_normaliser(p, system)
                for each, part, system in zip(evidence, self._parts, systems, strict=True)
            ]
        return _Found(torch.stack(evidence, 1).softmax(1), parts)

    def _total_variance(self, found: "_Found", p: Tensor, systems: list[System | None]) -> Tensor:
        size = self.prior_mean.numel()
        within = [part._variance(p, system) for part, system in zip(self._parts, systems, strict=True)]
        between = [part.between / size for part in found.parts]
        means = (found.means - found.mean[:, None]).flatten(2).square().mean(2)
        return (found.weights * (torch.stack(within, 1) + torch.stack(between, 1) + means)).sum(1)

    def _covariance_times(self, v: Tensor) -> Tensor:
        found, total = self._given_measurement, torch.zeros_like(v)
        for part, apart, its, weight, mean in zip(
            self._parts, self._apart, found.parts, found.weights.unbind(1), found.means.unbind(1), strict=True
        ):
            along = part.shape_of(v).flatten(2) @ apart.flatten(2).mT * its.weights[:, None]
            between = part.image_of((along @ apart.flatten(2)).view(*along.shape[:2], *apart.shape[2:]))
            gap = (mean - found.mean).flatten(1)[:, None]
            moved = ((v.flatten(2) * gap).sum(2, keepdim=True) * gap).view_as(v)
            total = total + aligned_to(weight, v) * (part._covariance_times(v) + between + moved)
        return total


@dataclass(frozen=True)
class _Given:
    """Of clusters with one covariance. logits: log-probabilities but for normalisers, (B, K'); mean: of them together,
    (B, C, H, W); shift: by which shape it differs from that around `prior_mean`, (B, S, H, W); between: the sum over
    pixels of the variance between the clusters' means, (B,); u: what the system makes of their measurements,
    (B, K', *M), or None."""

    logits: Tensor
    mean: Tensor
    shift: Tensor
    between: Tensor
    u: Tensor | None

    @property
    def weights(self) -> Tensor:
        """Probability of each among them, (B, K')."""
        return self.logits.softmax(1)


@dataclass(frozen=True)
class _Found:
    """weights: probability of each of J covariances, (B, J), and what is known of its clusters."""

    weights: Tensor
    parts: list[_Given]

    @property
    def probabilities(self) -> Tensor:
        """Of each cluster, (B, K)."""
        weights = self.weights.unbind(1)
        return torch.cat([w[:, None] * part.weights for w, part in zip(weights, self.parts, strict=True)], 1)

    @cached_property
    def means(self) -> Tensor:
        """(B, J, C, H, W)."""
        return torch.stack([part.mean for part in self.parts], 1)

    @cached_property
    def mean(self) -> Tensor:
        """(B, C, H, W)."""
        return torch.einsum("bj,bjchw->bchw", self.weights, self.means)


class _Part(GaussianPosterior):
    """Clusters with one covariance, given the measurements. centres: (K', C, H, W); log_weights: (K',).

    `prior_mean` is one image from which the centres differ by shapes: images of S channels, one where all differ in
    the first combination of the channels and the operator lets these be, else C.
    """

    def __init__(
        self,
        centres: Tensor,
        log_weights: Tensor,
        covariance: Covariance,
        measurement: Measurement | None,
        n: int,
        differ_in_one_channel: bool,
    ) -> None:
        base = torch.einsum("k,kchw->chw", log_weights.softmax(0), centres)
        super().__init__(base, covariance, measurement, n)
        self.centres, self.log_weights = centres, log_weights
        self.differ_in_one_channel = differ_in_one_channel

    def given(self, x: Tensor | None, p: Tensor, system: System | None) -> _Given:
        """What x of precision p and y say of each."""
        mean, evidence = self.prior_mean.expand(self.batch_size, *self.image_shape), torch.zeros_like(p)
        left = back = None
        if x is not None:
            # 1 / (c + sigma^2) = p / (1 + c p).
            left = self.covariance.filter(x - mean, p, kept)
            evidence = evidence - 0.5 * p * _inner(x - mean, left, 1)
            mean = x - left
        if system is not None:
            H = self._exact[1]
            missed = self._seen - H.H(mean)
            u = system.solve(missed[:, None])[:, 0]
            back = H.H_adjoint(u)
            evidence = evidence - 0.5 * _inner(missed, u, 1)
            mean = mean + self.covariance.filter(back, p, given_noisy)
        if len(self.centres) == 1:
            # Its centre is `prior_mean`.
            logits = (self.log_weights + evidence[:, None]).expand(self.batch_size, 1)
            return _Given(logits, mean, self.shape_of(torch.zeros_like(mean)), torch.zeros_like(p), None)
        gained, u_of_each = self._gained(left, back, p, system)
        logits = self.log_weights + evidence[:, None] + gained
        weights = logits.softmax(1)
        shift = self._shapes.mixed(weights, p, u_of_each)
        between = (weights * self._shapes.squares(p, u_of_each)).sum(1) - shift.flatten(1).square().sum(1)
        return _Given(logits, mean + self.image_of(shift), shift, between.clamp(min=0), u_of_each)

    def _gained(
        self, gap: Tensor | None, back: Tensor | None, p: Tensor, system: System | None
    ) -> tuple[Tensor, Tensor | None]:
        """What x and y say of each cluster beyond `prior_mean`, (B, K'), and what the system makes of its measurement.

        gap: what of x the mean around `prior_mean` did not follow; back: H^T of what the system makes of y less its own
        mean; None where not given.
        """
        gained, u = p.new_zeros(self.batch_size, len(self.centres)), None
        if gap is not None:
            gained = p[:, None] * (self._along(gap) - 0.5 * self._shapes.energy(p, kept))
        if back is not None and system is not None:
            seen = self._shapes.measured(p)
            u = (system_of_first(system) if self._is_one_channel else system).solve(seen)
            back = self.covariance.filter(back, p, kept)
            gained = gained + self._along(back) - 0.5 * _inner(seen, u, 2)
        return gained, u

    def apart(self, given: _Given) -> Tensor:
        """How the mean of each cluster, given measurements alone, differs from that of them together, as shapes
        (B, K', S, H, W)."""
        return self._shapes.moved(self._nothing, given.u) - given.shift[:, None]

    def log_normaliser(self, p: Tensor, system: System | None) -> Tensor:
        """What `given` leaves out of the logarithms, but for terms that know nothing of the covariance, (B,)."""
        noisy = self.prior_mean.numel() * self.covariance.mean_of(p, lambda c, p: (c * p).log1p())
        return 0.5 * (noisy if system is None else noisy + system.log_determinant())

    # Shapes.

    @property
    def _is_one_channel(self) -> bool:
        lets_them_be = self._measurement is None or isinstance(self._solver, Blocks)
        return self.differ_in_one_channel and lets_them_be

    @cached_property
    def _shapes(self) -> Shapes:
        solver = None if self._measurement is None else self._solver
        if self._is_one_channel:
            assert isinstance(self.covariance, Coloured)
            covariance: Covariance = self.covariance.blocks[0]
            solver = solver.solvers[0] if isinstance(solver, Blocks) else None
        else:
            covariance = self.covariance
        assert isinstance(covariance, LowRank)
        return Shapes(self.shape_of(self.centres - self.prior_mean), covariance, solver)

    def shape_of(self, images: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., S, H, W)."""
        if not self._is_one_channel:
            return images
        assert isinstance(self.covariance, Coloured)
        return torch.einsum("c,...chw->...hw", self.covariance.colours[0], images).unsqueeze(-3)

    def image_of(self, shapes: Tensor) -> Tensor:
        """(..., S, H, W) -> (..., C, H, W)."""
        if not self._is_one_channel:
            return shapes
        assert isinstance(self.covariance, Coloured)
        return shapes * self.covariance.colours[0].view(-1, 1, 1)

    def _along(self, images: Tensor) -> Tensor:
        """Inner products of all shapes with images (B, C, H, W), (B, K')."""
        return self.shape_of(images).flatten(1) @ self._shapes.images.flatten(1).mT

    @cached_property
    def _seen(self) -> Tensor:
        """What of y lies in the range of H, (B, *M): noise outside of it speaks for no cluster."""
        return self._solver.in_range(self._exact[0])


def _inner(a: Tensor, b: Tensor, start: int) -> Tensor:
    """Inner products over the axes from `start` on."""
    return (a * b).flatten(start).sum(-1)
