import pytest
import torch
from tiny_priors import draws_of, mixture

from invfusion.errors import ConfigError
from invfusion.oracle import fit_mixture

pytest.importorskip("sklearn")


def test_a_mixture_is_found_again() -> None:
    """Fitted to its own draws, the prior comes back: the moments, and the density of images that were held out."""
    truth = mixture(rank=2)
    fitted = fit_mixture(draws_of(truth, 1500).float(), n_components=3, rank=8, seed=1)
    held_out = draws_of(truth, 200, "held out")
    loss = float((truth.log_density(held_out) - fitted.log_density(held_out)).mean())
    gaussian = fit_mixture(draws_of(truth, 1500).float(), n_components=1, rank=8)
    assert -1 < loss < 8
    assert loss < float((truth.log_density(held_out) - gaussian.log_density(held_out)).mean()) / 2
    torch.testing.assert_close(fitted.mean, truth.mean, atol=0.1, rtol=0)


def test_a_gaussian_has_the_moments_of_the_images() -> None:
    x = draws_of(mixture(), 600).float()
    law = fit_mixture(x, n_components=1, rank=20)
    spread = x.double().flatten(1).T.cov()
    torch.testing.assert_close(law.mean[0], x.double().mean(0), atol=1e-6, rtol=0)
    assert float((law.covariance()[0] - spread).norm() / spread.norm()) < 0.1
    torch.testing.assert_close(law.covariance()[0].trace(), spread.trace(), rtol=0.03, atol=0)


def test_the_same_seed_gives_the_same_prior() -> None:
    x = draws_of(mixture(), 200).float()
    a, b = (fit_mixture(x, n_components=2, rank=4, seed=3) for _ in range(2))
    assert torch.equal(a.means, b.means)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot carry"):
        fit_mixture(torch.zeros(3, 1, 8, 8), n_components=1, rank=4)
