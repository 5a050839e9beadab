"""A prior with clusters against the oracle's exact mixture."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.errors import CheckpointError, ConfigError
from invfusion.gaussian import GaussianPrior
from invfusion.gaussian.covariance import LowRank
from invfusion.gaussian.prior import Form
from invfusion.operators import Measurement
from invfusion.oracle import GaussianMixture, mixture_of
from invfusion.rng import generator, generators, randn

pytest.importorskip("sklearn")

SHAPE, B, K = (3, 8, 8), 4, 3
TINT = torch.tensor([1.0, 0.8, 0.6]).view(3, 1, 1)


def images(n: int = 300) -> Tensor:
    """Shapes of three kinds in slightly different tints."""
    draws = generator(0, "images")
    kinds = 0.5 * torch.randn(K, 1, 8, 8, generator=draws)
    shapes = kinds[torch.randint(K, (n,), generator=draws)] + 0.1 * torch.randn(n, 1, 8, 8, generator=draws)
    return TINT * shapes + 0.05 * torch.randn(n, *SHAPE, generator=draws)


# The form of the prior, or one of form "full" whose clusters have covariances of their own.
Kind = Literal["full", "coloured", "own"]


def fitted(kind: Kind = "full") -> GaussianPrior:
    form: Form = "full" if kind == "own" else kind
    return GaussianPrior.fit(images(), rank=40, form=form, clusters=K, own_covariances=kind == "own")


def measured(prior: GaussianPrior, kind: str, sigma_y: float) -> tuple[GaussianMixture, Tensor, Measurement]:
    assert prior.clusters is not None
    law = mixture_of(prior.clusters)
    settings: dict[str, Any] = {"strided_motion_blur": {"strides": (2,)}, "matrix": {"max_rows": 20}}
    operator = FAMILIES[kind](**settings.get(kind, {})).sample(B, SHAPE, generator(0, kind))
    x = law.sample(generators(0, "x", range(B))).float()
    noise = randn(operator.measurement_shape, generators(0, "noise", range(B)))
    return law, x, Measurement.of(x, operator, sigma_y, noise)


@pytest.mark.parametrize("form", ["full", "coloured", "own"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["strided_motion_blur", "patch_inpainting", "matrix", "box_outpainting", "null"])
def test_agrees_with_the_oracle(kind: str, sigma_y: float, form: Kind) -> None:
    prior = fitted(form)
    law, x, measurement = measured(prior, kind, sigma_y)
    found, truth = prior.refined((B, *SHAPE), measurement), law.given(measurement)
    torch.testing.assert_close(found.mean, truth.mean.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.variance.double(), _pixel_variance(truth), rtol=1e-5, atol=1e-9)
    for sigma in (0.01, 0.5, 100.0):
        noisy = x + sigma * randn(SHAPE, generators(0, "eps", range(B)))
        exactly = truth.given_noisy(noisy, torch.tensor(sigma))
        denoised, variance = found.denoise_with_variance(noisy, torch.tensor(sigma))
        torch.testing.assert_close(denoised, exactly.mean.float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(variance.double(), _pixel_variance(exactly), rtol=1e-5, atol=1e-9)
    deviations = found.principal_components(2)[1]
    torch.testing.assert_close(deviations.double(), truth.principal_components(2)[1], rtol=1e-4, atol=1e-6)


def _pixel_variance(law: GaussianMixture) -> Tensor:
    return law.covariance().diagonal(dim1=1, dim2=2).mean(1)


@pytest.mark.parametrize("form", ["full", "own"])
def test_the_evidence_adds_up(form: Kind) -> None:
    """ln p(y) of two measurements differs as the mixture's densities of y do."""
    prior = fitted(form)
    law, _, measurement = measured(prior, "matrix", 0.3)
    rows = measurement.operator.H(torch.eye(192).view(192, *SHAPE).expand(B, 192, *SHAPE)).mT.double()
    assert prior.clusters is not None
    covariance = rows[:, None] @ law._covariances @ rows[:, None].mT + 0.09 * torch.eye(rows.shape[1])
    means = law.means[0] @ rows.mT
    y = measurement.y[:, None].double()
    each = torch.distributions.MultivariateNormal(means, covariance).log_prob(y)  # type: ignore[no-untyped-call]
    expected = (each + law.log_weights).logsumexp(1)
    found = prior.refined((B, *SHAPE), measurement).log_evidence
    full = rows.abs().sum(2).gt(0).all(1)
    torch.testing.assert_close(found[full], expected[full], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", ["full", "own"])
def test_draws_are_of_the_posterior(form: Kind) -> None:
    """Of a measurement so noisy that two kinds stay likely: mean and spread of many draws, within their own errors."""
    prior, n = fitted(form), 2000
    law, _, measurement = measured(prior, "matrix", 3.0)
    row = int(law.given(measurement).log_weights.exp().amax(1).argmin())
    many = measurement.select([row] * n)
    truth = law.given(measurement).rows([row])
    assert float(truth.log_weights.exp().max()) < 0.9
    draws = prior.refined((n, *SHAPE), many).sample(generators(0, "draws", range(n))).double().flatten(1)
    covariance = truth.covariance()[0]
    z = (draws.mean(0) - truth.mean.flatten()) / (covariance.diagonal() / n).sqrt()
    assert float(z.abs().max()) < 5
    assert float(draws.var(0).sum() / covariance.trace()) == pytest.approx(1, abs=0.1)
    leading = torch.linalg.eigh(covariance)[1][:, -1]
    assert float((draws @ leading).var()) == pytest.approx(float(leading @ covariance @ leading), rel=0.15)


def test_what_is_gaussian_stays_so() -> None:
    _, _, measurement = measured(fitted(), "matrix", 0.0)
    plain = GaussianPrior.fit(images(), rank=40)
    assert torch.equal(fitted().posterior(measurement).mean, plain.posterior(measurement).mean)
    assert torch.equal(plain.refined((B, *SHAPE), measurement).mean, plain.posterior(measurement).mean)


def test_kinds_are_found_in_any_tint() -> None:
    """Of coloured priors, the centres differ by multiples of one tint."""
    clusters = fitted("coloured").clusters
    assert clusters is not None
    apart = (clusters.centres - clusters.centres.mean(0)).transpose(0, 1).flatten(1)
    values = torch.linalg.svdvals(apart)
    assert float(values[1]) < 1e-9 * float(values[0])
    assert float(values[0]) > 1


@pytest.mark.parametrize("form", ["full", "coloured", "own"])
def test_files_keep_the_clusters(tmp_path: Path, form: Kind) -> None:
    prior = fitted(form)
    prior.save(tmp_path / "prior")
    _, _, measurement = measured(prior, "matrix", 0.1)
    loaded = GaussianPrior.load(tmp_path / "prior")
    assert torch.equal(loaded.refined((B, *SHAPE), measurement).mean, prior.refined((B, *SHAPE), measurement).mean)
    tensors = prior.tensors()
    for missing in ("clusters.weights", "clusters.covariances.0.variances"):
        with pytest.raises(CheckpointError, match="is not made of the tensors"):
            GaussianPrior.from_tensors({name: tensor for name, tensor in tensors.items() if name != missing})


def test_covariances_of_their_own_are_found() -> None:
    """Of two kinds, of which each varies in a direction of its own."""
    draws = generator(0, "images")
    kind = torch.randint(2, (400,), generator=draws)
    x = 0.05 * torch.randn(400, 4, generator=draws)
    x[torch.arange(400), kind] += torch.randn(400, generator=draws)
    x[:, 2] += 2 * kind
    prior = GaussianPrior.fit(x.view(400, 1, 2, 2), clusters=2, own_covariances=True)
    assert prior.clusters is not None
    covariances = [c for c in prior.clusters.covariances if isinstance(c, LowRank)]
    leading = torch.stack([c.flat_basis[:, c.variances.argmax()] for c in covariances]).abs()
    assert sorted(leading.argmax(1).tolist()) == [0, 1]
    assert float(leading.amax(1).min()) > 0.99
    torch.testing.assert_close(prior.clusters.weights, torch.full((2,), 0.5).double(), rtol=0, atol=0.1)


def test_bad_numbers_of_clusters_are_refused() -> None:
    alike = images()[:3].repeat(10, 1, 1, 1)
    with (
        pytest.warns(Warning, match="distinct clusters"),
        pytest.raises(ConfigError, match="too little for 10 clusters"),
    ):
        GaussianPrior.fit(alike, rank=2, clusters=10)
    with pytest.raises(ConfigError, match="10 images form 2 to 5 clusters, not 6"):
        GaussianPrior.fit(images(10), rank=3, clusters=6)
    with pytest.raises(ConfigError, match="has no clusters"):
        GaussianPrior.fit(images(10), form="stationary", clusters=2)
    for form in ("coloured", "stationary"):
        with pytest.raises(ConfigError, match="of their own have the form 'full'"):
            GaussianPrior.fit(images(10), form=form, clusters=2, own_covariances=True)
