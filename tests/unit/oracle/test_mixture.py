"""Every closed form against brute force: sums over a fine grid in two dimensions, draws in more."""

import math

import pytest
import torch
from tiny_priors import SHAPE, draws_of, mixture, rows_of
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.errors import ShapeError
from invfusion.operators import MaskOperator, Measurement
from invfusion.oracle import ExactDenoiser, GaussianMixture
from invfusion.oracle.mixture import distinct_operators, operator_matrix
from invfusion.rng import generator, generators, randn

PAIR = (1, 1, 2)


def plane() -> GaussianMixture:
    """Two overlapping Gaussians over images of two pixels."""
    return GaussianMixture.of_factors(
        PAIR,
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-0.6, 0.2], [0.5, -0.1]]),
        torch.tensor([[[0.4], [0.3]], [[0.2], [-0.5]]]),
        torch.tensor([[0.05, 0.02], [0.03, 0.06]]),
    )


def grid(n: int = 801, half: float = 4.0) -> Tensor:
    """The points of a fine grid, as images."""
    axis = torch.linspace(-half, half, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis).view(-1, *PAIR)


def brute_density(points: Tensor) -> Tensor:
    """The density of `plane`, written out with torch.distributions."""
    total = torch.zeros(len(points), dtype=torch.float64)
    law = plane()
    for k, w in enumerate([0.3, 0.7]):
        q = law.basis[0, k]
        covariance = q @ torch.diag(law.variances[0, k]) @ q.T
        normal = torch.distributions.MultivariateNormal(law.means[0, k], covariance)
        total += w * normal.log_prob(points.flatten(1)).exp()
    return total


def moments(weights: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    weights = weights / weights.sum()
    flat = points.flatten(1)
    mean = weights @ flat
    return mean, (weights[:, None] * (flat - mean)).T @ (flat - mean)


def test_factors_are_low_rank_plus_diagonal() -> None:
    draws = generator(0, "factors")
    factors, diagonal = torch.randn(2, 6, 3, generator=draws), torch.rand(2, 6, generator=draws) + 0.1
    law = GaussianMixture.of_factors((1, 2, 3), torch.tensor([0.5, 0.5]), torch.zeros(2, 6), factors, diagonal)
    expected = (factors @ factors.mT + torch.diag_embed(diagonal)).double()
    torch.testing.assert_close(law._covariances, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(law.covariance()[0], expected.mean(0), atol=1e-6, rtol=1e-6)


def test_density_matches_the_library_and_integrates_to_one() -> None:
    points = grid()
    density = plane().log_density(points).exp()
    torch.testing.assert_close(density, brute_density(points))
    assert float(density.sum()) * (8 / 800) ** 2 == pytest.approx(1, abs=1e-6)


def test_draws_have_the_moments() -> None:
    law = mixture()
    x = draws_of(law, 4000).flatten(1)
    spread = law.covariance()[0]
    assert float((x.mean(0) - law.mean[0].flatten()).abs().max()) < 4 * float(spread.diagonal().max() / 4000) ** 0.5
    assert float((x.T.cov() - spread).norm() / spread.norm()) < 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.7, 5.0])
def test_denoiser_is_the_conditional_mean(sigma: float) -> None:
    points, noisy = grid(), torch.tensor([[[[0.3, -0.8]]], [[[-1.0, 0.4]]]], dtype=torch.float64)
    law = plane().given_noisy(noisy, torch.full((2,), sigma))
    for row in range(2):
        likelihood = (-(points - noisy[row]).flatten(1).square().sum(1) / (2 * sigma**2)).exp()
        mean, covariance = moments(plane().log_density(points).exp() * likelihood, points)
        torch.testing.assert_close(law.mean[row].flatten(), mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(law.covariance()[row], covariance, atol=1e-6, rtol=0)


@pytest.mark.parametrize("matrix", [[[0.8, 0.6]], [[0.8, 0.6], [0.8, 0.6], [0.0, 0.0]], [[1.0, 0.2], [0.3, 1.0]]])
def test_posterior_of_a_noisy_measurement(matrix: list[list[float]]) -> None:
    """One row, a rank-deficient operator, and a regular one."""
    points, sigma_y = grid(), 0.3
    truth = torch.tensor([[[[0.4, -0.3]]]])
    noise = 0.1 * torch.ones(1, len(matrix))
    measurement = Measurement.of(truth, rows_of(matrix, PAIR), sigma_y, noise)
    residual = points.flatten(1) @ torch.tensor(matrix, dtype=torch.float64).T - measurement.y.double()
    likelihood = (-residual.square().sum(1) / (2 * sigma_y**2)).exp()
    mean, covariance = moments(plane().log_density(points).exp() * likelihood, points)
    law = plane().given(measurement)
    torch.testing.assert_close(law.mean[0].flatten(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(law.covariance()[0], covariance, atol=1e-6, rtol=0)


def test_posterior_without_noise_lives_on_the_line() -> None:
    """Hx = y restricts the plane to a line, along which the prior is renormalised."""
    normal, along = torch.tensor([0.8, 0.6]).double(), torch.tensor([-0.6, 0.8]).double()
    truth = torch.tensor([[[[0.4, -0.3]]]])
    law = plane().given(Measurement.of(truth, rows_of([[0.8, 0.6]], PAIR)))
    line = float(truth.flatten().double() @ normal) * normal + torch.linspace(-4, 4, 8001)[:, None] * along
    mean, covariance = moments(plane().log_density(line.view(-1, *PAIR)).exp(), line)
    torch.testing.assert_close(law.mean[0].flatten(), mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(law.covariance()[0], covariance, atol=1e-6, rtol=0)
    assert float(law.covariance()[0] @ normal @ normal) < 1e-12


def test_conditional_denoiser_sees_both_the_noisy_image_and_the_measurement() -> None:
    points, sigma, sigma_y = grid(), 0.5, 0.2
    noisy, matrix = torch.tensor([[[[0.9, -0.2]]]]), [[0.6, -0.8]]
    measurement = Measurement(torch.tensor([[0.35]]), rows_of(matrix, PAIR), torch.tensor([sigma_y]))
    residual = points.flatten(1) @ torch.tensor(matrix, dtype=torch.float64).T - 0.35
    weights = plane().log_density(points).exp()
    weights *= (-residual.square().sum(1) / (2 * sigma_y**2)).exp()
    weights *= (-(points - noisy.double()).flatten(1).square().sum(1) / (2 * sigma**2)).exp()
    expected = moments(weights, points)[0]
    denoised = ExactDenoiser(plane())(noisy, torch.tensor([sigma]), measurement)
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised.flatten().double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16)])
@pytest.mark.parametrize("kind", ["strided_motion_blur", "matrix"])
def test_color_and_larger_images_follow_bayes_rule(kind: str, shape: tuple[int, int, int]) -> None:
    """Noisy image and measurement as one observation A x + noise, all pixels at once, without factorisations."""
    prior, sigma, sigma_y = mixture(shape, n_components=2), 0.5, 0.2
    truth = draws_of(prior, 1).float()
    operator = FAMILIES[kind]().sample(1, shape, generator(0, "H"))
    noise = randn(operator.measurement_shape, generators(0, "n", range(1)))
    measurement = Measurement.of(truth, operator, sigma_y, noise)
    noisy = truth + sigma * randn(shape, generators(0, "noisy", range(1)))
    matrix = operator_matrix(operator)
    A = torch.cat([matrix, torch.eye(truth.numel(), dtype=torch.float64)])
    seen = torch.cat([measurement.y.double().flatten(), noisy.double().flatten()])
    variances = torch.tensor([sigma_y**2, sigma**2]).repeat_interleave(torch.tensor([len(matrix), truth.numel()]))
    means, scores = [], []
    for k in range(2):
        q = prior.basis[0, k]
        covariance = q @ torch.diag(prior.variances[0, k]) @ q.T
        law = torch.distributions.MultivariateNormal(
            A @ prior.means[0, k], A @ covariance @ A.T + torch.diag(variances.double())
        )
        scores.append(prior.log_weights[0, k] + law.log_prob(seen))
        gain = torch.linalg.solve(law.covariance_matrix, seen - law.loc)
        means.append(prior.means[0, k] + covariance @ A.T @ gain)
    expected = torch.stack(scores).softmax(0) @ torch.stack(means)
    denoised = ExactDenoiser(prior)(noisy, torch.tensor([sigma]), measurement)
    torch.testing.assert_close(denoised.flatten().double(), expected, atol=1e-5, rtol=0)


# What measures colours needs three channels.
OF_COLOURS = ("grayscale", "mosaic")


@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_the_truth_is_a_draw_of_the_posterior(kind: str, sigma_y: float) -> None:
    """Averaged over images of the prior, the squared error of the posterior mean is the posterior variance."""
    shape = (3, 8, 8) if kind in OF_COLOURS else SHAPE
    prior, n = mixture(shape, n_components=2), 200
    x = draws_of(prior, n).float()
    operator = FAMILIES[kind]().sample(n, shape, generator(0, "H"))
    measurement = Measurement.of(x, operator, sigma_y, randn(operator.measurement_shape, generators(0, "n", range(n))))
    law = prior.given(measurement)
    error = (x.double() - law.mean).flatten(1).square().sum(1)
    variance = law.covariance().diagonal(dim1=-2, dim2=-1).sum(1)
    assert float(error.mean()) == pytest.approx(float(variance.mean()), rel=0.15, abs=1e-6)
    if sigma_y == 0:
        drawn = law.sample(generators(0, "draw", range(n))).float()
        torch.testing.assert_close(operator.H(drawn), measurement.y, atol=2e-3, rtol=0)


def test_equal_operators_share_a_factorisation() -> None:
    prior = mixture()
    mask = torch.stack([torch.arange(64).view(1, 8, 8) % 2, torch.arange(64).view(1, 8, 8) % 3]).clamp(max=1).float()
    operator = MaskOperator(SHAPE, mask[[0, 1, 0, 1]])
    x = draws_of(prior, 4).float()
    measurement = Measurement.of(x, operator)
    assert distinct_operators(measurement).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    together = prior.given(measurement)
    assert together.basis.shape[0] == 2
    way = generators(0, "s", range(4))
    noisy, sigma = x + 0.3 * randn(SHAPE, generators(0, "e", range(4))), torch.tensor([0.1, 0.5, 1.0, 2.0])
    for i in range(4):
        apart = prior.given(measurement.select([i]))
        torch.testing.assert_close(apart.mean, together.mean[i : i + 1])
        torch.testing.assert_close(apart.log_weights, together.log_weights[i : i + 1])
        alone = apart.given_noisy(noisy[i : i + 1], sigma[i : i + 1])
        torch.testing.assert_close(alone.mean, together.given_noisy(noisy, sigma).mean[i : i + 1])
        drawn = apart.sample([generator(0, "s", i)])
        assert drawn.shape == (1, *SHAPE)
    assert together.sample(way).shape == (4, *SHAPE)


def test_null_operator_leaves_the_prior() -> None:
    prior = mixture()
    operator = FAMILIES["null"]().sample(2, SHAPE, generator(0, "H"))
    law = prior.given(Measurement.of(torch.zeros(2, *SHAPE), operator))
    torch.testing.assert_close(law.mean[1], prior.mean[0])
    torch.testing.assert_close(law.covariance()[0], prior.covariance()[0])


def test_principal_components_of_a_known_covariance() -> None:
    factors = torch.tensor([[[2.0, 0], [0, 1], [0, 0], [0, 0]]])
    law = GaussianMixture.of_factors((1, 2, 2), torch.ones(1), torch.zeros(1, 4), factors, torch.full((4,), 0.01))
    directions, stds = law.principal_components(2)
    torch.testing.assert_close(directions.abs().view(2, 4), torch.eye(4, dtype=torch.float64)[:2])
    assert stds[0].tolist() == pytest.approx([math.sqrt(4.01), math.sqrt(1.01)])


def test_gradient_through_the_denoiser_is_the_posterior_covariance() -> None:
    """Tweedie's second order: dD/dx = Cov[x0 | x] / sigma^2."""
    law, sigma = plane(), torch.tensor([0.4])
    noisy = torch.tensor([[[[0.1, 0.2]]]], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: law.given_noisy(x, sigma).mean.flatten(), noisy)
    expected = law.given_noisy(noisy, sigma).covariance()[0] / 0.4**2
    torch.testing.assert_close(jacobian.view(2, 2), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_the_matrix_of_an_operator(kind: str) -> None:
    operator = FAMILIES[kind]().sample(3, (3, 8, 8), generator(0, "H"))
    x = randn((3, 8, 8), generators(0, "x", range(3)))
    expected = operator.H(x)[2].flatten().double()
    torch.testing.assert_close(operator_matrix(operator, 2) @ x[2].flatten().double(), expected, atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused() -> None:
    prior = mixture()
    law = prior.given_noisy(draws_of(prior, 3), torch.ones(3))
    with pytest.raises(ShapeError, match="3 rows does not fit a batch of 2"):
        law.sample(generators(0, "x", range(2)))
    with pytest.raises(ShapeError, match="only a prior over images"):
        prior.given(Measurement.of(torch.zeros(1, *PAIR), rows_of([[1.0, 0.0]], PAIR)))
    with pytest.raises(ShapeError, match="needs weights"):
        GaussianMixture.of_factors(PAIR, torch.ones(1), torch.zeros(1, 3), torch.zeros(1, 3, 1), torch.ones(3))
