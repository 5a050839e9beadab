"""Priors that look like given images."""

import torch
from torch import Tensor

from invfusion.errors import ConfigError
from invfusion.gaussian import GaussianPrior
from invfusion.gaussian.clusters import Clusters
from invfusion.gaussian.covariance import LowRank
from invfusion.oracle.mixture import GaussianMixture
from invfusion.rng import derive_seed

# No direction of a fitted prior has less variance: about two grey levels of 255, squared.
VARIANCE_FLOOR = 2.5e-4


def fit_mixture(
    images: Tensor, n_components: int, rank: int, *, seed: int = 0, floor: float = VARIANCE_FLOOR
) -> GaussianMixture:
    """Fit a mixture with low-rank plus diagonal covariances to images (N, C, H, W) in [-1, 1].

    scikit-learn's expectation-maximisation fits full covariances to the `rank` leading principal coordinates; the
    variance that these leave out goes to the diagonal, pixel by pixel, and nowhere is there less than `floor`.
    n_components = 1 gives a Gaussian. Raises `ConfigError` without scikit-learn or with too few images.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture as ExpectationMaximisation
    except ImportError:
        raise ConfigError("fitting a prior needs scikit-learn: pip install scikit-learn") from None
    flat = images.double().flatten(1).cpu().numpy()
    if min(flat.shape) < max(rank, n_components):
        raise ConfigError(f"{flat.shape[0]} images of {flat.shape[1]} numbers cannot carry {rank=}, {n_components=}")
    pca = PCA(rank, svd_solver="full").fit(flat)
    coordinates = pca.transform(flat)
    em = ExpectationMaximisation(n_components, reg_covar=floor, random_state=derive_seed(seed, "oracle/fit") % 2**32)
    em.fit(coordinates)
    left_out = (flat - pca.inverse_transform(coordinates)).var(axis=0) + floor
    directions = torch.from_numpy(pca.components_.T)
    return GaussianMixture.of_factors(
        tuple(images.shape[1:]),
        weights=torch.from_numpy(em.weights_),
        means=torch.from_numpy(pca.inverse_transform(em.means_)),
        factors=directions @ torch.linalg.cholesky(torch.from_numpy(em.covariances_)),
        diagonal=torch.from_numpy(left_out),
    )


def gaussian_prior(prior: GaussianMixture) -> GaussianPrior:
    """The Gaussian prior with the mean and the covariance of a mixture: the best of its kind for these images."""
    variances, basis = torch.linalg.eigh(prior.covariance()[0])
    floor = variances[0]
    above = variances > floor
    covariance = LowRank(basis[:, above].view(*prior.image_shape, -1), variances[above] - floor, floor)
    return GaussianPrior(prior.mean[0], covariance)


def mixture_of(clusters: Clusters) -> GaussianMixture:
    """What a prior's clusters say of images; of covariances of low rank."""
    covariances = [c for c in clusters.covariances if isinstance(c, LowRank)]
    n = len(clusters.weights)
    factors = torch.stack([c.flat_basis * c.variances.sqrt() for c in covariances])
    floors = torch.stack([c.floor for c in covariances])
    centres = clusters.centres.flatten(1)
    return GaussianMixture.of_factors(
        tuple(clusters.centres.shape[1:]),
        clusters.weights,
        centres,
        factors.expand(n, *factors.shape[1:]),
        floors[:, None].expand(n, centres.shape[1]),
    )
