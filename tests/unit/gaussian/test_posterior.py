"""The posterior of a Gaussian prior against the oracle's exact Gaussian, whichever solver finds it."""

import pytest
import torch
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.errors import OperatorError, ShapeError
from invfusion.gaussian import GaussianPrior, covariance, posterior, solvers
from invfusion.gaussian.covariance import Covariance, LowRank
from invfusion.gaussian.prior import Form
from invfusion.operators import LinearOperator, MatrixOperator, Measurement
from invfusion.operators.convolution import StridedConvolution
from invfusion.oracle import GaussianMixture
from invfusion.rng import generator, generators, randn

B, SHAPE = 4, (3, 8, 8)
SETTINGS = {"strided_motion_blur": {"strides": (2,)}, "matrix": {"max_rows": 40}}
FORMS: tuple[Form, ...] = ("full", "coloured")


def images(n: int = 300) -> Tensor:
    """Correlated pixels and colours, of low rank and a little more."""
    draws = generator(0, "images")
    factors = torch.randn(12, 192, generator=draws) * 0.3
    x = torch.randn(n, 12, generator=draws) @ factors + 0.05 * torch.randn(n, 192, generator=draws)
    return x.view(n, *SHAPE)


def fitted(form: Form = "full", rank: int = 30) -> GaussianPrior:
    return GaussianPrior.fit(images(), rank=rank, form=form)


def exact(prior: GaussianPrior) -> GaussianMixture:
    covariance = prior.covariance
    assert isinstance(covariance, LowRank)
    return GaussianMixture.of_factors(
        prior.image_shape,
        torch.ones(1),
        prior.mean.flatten()[None],
        (covariance.flat_basis * covariance.variances.sqrt())[None],
        covariance.floor.expand(prior.mean.numel()),
    )


def operator_of(kind: str) -> LinearOperator:
    return FAMILIES[kind](**SETTINGS.get(kind, {})).sample(B, SHAPE, generator(0, kind))


def blur_that_loses_frequencies(stride: int, cutoff: float = 0.2) -> StridedConvolution:
    kernel = torch.rand(B, 8, 8, generator=generator(0, "kernel"))
    return StridedConvolution(SHAPE, kernel / kernel.sum((1, 2), keepdim=True), stride, cutoff)


def measured(law: GaussianMixture, operator: LinearOperator, sigma_y: float) -> tuple[Tensor, Measurement]:
    x = law.sample(generators(0, "x", range(B))).float()
    noise = randn(operator.measurement_shape, generators(0, "noise", range(B)))
    return x, Measurement.of(x, operator, sigma_y, noise)


def noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * randn(SHAPE, generators(0, "eps", range(B)))


@pytest.mark.parametrize("on_accelerator", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("kind", FAMILIES)
def test_agrees_with_the_oracle(
    kind: str, sigma_y: float, form: Form, on_accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_accelerator:
        monkeypatch.setattr(solvers, "answers_at_once", lambda _: False)
    prior = fitted(form)
    law = exact(prior)
    x, measurement = measured(law, operator_of(kind), sigma_y)
    found, truth = prior.posterior(measurement), law.given(measurement)
    torch.testing.assert_close(found.mean, truth.mean.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.variance, truth.variances.mean((1, 2)).float(), rtol=1e-5, atol=1e-9)
    for sigma in (0.002, 0.1, 1.0, 100.0):
        seen = noisy(x, sigma)
        exactly = truth.given_noisy(seen, torch.tensor(sigma).expand(B))
        denoised, variance = found.denoise_with_variance(seen, torch.tensor(sigma))
        torch.testing.assert_close(denoised, exactly.mean.float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(variance, exactly.variances.mean((1, 2)).float(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["patch_inpainting", "strided_motion_blur", "matrix", "box_inpainting"])
@pytest.mark.parametrize("solver", [solvers.Dense, solvers.Woodbury, solvers.ConjugateGradients])
def test_all_solvers_agree(
    solver: type[solvers.Solver], kind: str, sigma_y: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = fitted()
    law = exact(prior)
    x, measurement = measured(law, operator_of(kind), sigma_y)

    def chosen(covariance: Covariance, operator: LinearOperator, noise: Tensor, is_noisy: bool) -> solvers.Solver:
        return solver(covariance, operator, noise, is_noisy)

    monkeypatch.setattr(posterior, "solver_for", chosen)
    found, truth = prior.posterior(measurement), law.given(measurement)
    torch.testing.assert_close(found.mean, truth.mean.float(), rtol=0, atol=1e-6)
    seen, levels = noisy(x, 0.3), torch.full((B,), 0.3)
    exactly = truth.given_noisy(seen, levels)
    denoised, variance = found.denoise_with_variance(seen, levels)
    torch.testing.assert_close(denoised, exactly.mean.float(), rtol=0, atol=1e-6)
    if solver is not solvers.ConjugateGradients:
        torch.testing.assert_close(variance, exactly.variances.mean((1, 2)).float(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_blur_of_deficient_rank(stride: int, form: Form, sigma_y: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a system of the size of the measurement, which is circulant, or of that of the prior's rank."""
    prior = fitted(form)
    law = exact(prior)
    operator = blur_that_loses_frequencies(stride)
    monkeypatch.setattr(solvers, "SMALL", 48)
    lost = operator.spectra.singular == 0
    assert bool(lost.any())
    assert not bool(lost.all())
    x, measurement = measured(law, operator, sigma_y)
    found, truth = prior.posterior(measurement), law.given(measurement)
    torch.testing.assert_close(found.mean, truth.mean.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.variance, truth.variances.mean((1, 2)).float(), rtol=1e-5, atol=1e-9)
    seen, levels = noisy(x, 0.3), torch.full((B,), 0.3)
    exactly = truth.given_noisy(seen, levels).mean.float()
    torch.testing.assert_close(found.denoise(seen, levels), exactly, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["strided_motion_blur", "sharp", "box_inpainting", "matrix"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_grey_images(kind: str, sigma_y: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the three combinations of their channels do not vary at all."""
    prior = GaussianPrior.fit(images()[:, :1].expand(-1, 3, -1, -1), rank=10, form="coloured")
    law = exact(prior)
    # A stride of 1 has more measurements than are factorised.
    monkeypatch.setattr(solvers, "SMALL", 32)
    operator = blur_that_loses_frequencies(1) if kind == "sharp" else operator_of(kind)
    _, measurement = measured(law, operator, sigma_y)
    torch.testing.assert_close(
        prior.posterior(measurement).mean, law.given(measurement).mean.float(), rtol=0, atol=1e-6
    )


def test_each_sample_has_its_own_noise_levels() -> None:
    prior = fitted("coloured")
    law = exact(prior)
    x = law.sample(generators(0, "x", range(B))).float()
    operator = operator_of("strided_motion_blur")
    noise = randn(operator.measurement_shape, generators(0, "noise", range(B)))
    measurement = Measurement.of(x, operator, torch.tensor([0.0, 0.05, 0.2, 1.0]), noise)
    sigma, seen = torch.tensor([0.01, 0.1, 1.0, 50.0]), noisy(x, 0.1)
    expected = law.given(measurement).given_noisy(seen, sigma).mean.float()
    torch.testing.assert_close(prior.posterior(measurement).denoise(seen, sigma), expected, rtol=0, atol=1e-6)
    for row in range(B):
        one = prior.posterior(measurement.select([row])).denoise(seen[[row]], sigma[[row]])
        torch.testing.assert_close(one, expected[[row]], rtol=0, atol=1e-6)


def test_dependent_rows_count_once() -> None:
    prior = fitted()
    law = exact(prior)
    # In steps of a sixteenth, so that differences of rows are exact.
    rows = (16 * torch.randn(B, 5, 192, generator=generator(0, "rows"))).round() / 16
    operator = MatrixOperator(SHAPE, torch.cat((rows, rows[:, :2] - rows[:, 3:], torch.zeros(B, 1, 192)), 1))
    for sigma_y in (0.0, 0.1):
        _, measurement = measured(law, operator, sigma_y)
        expected = law.given(measurement).mean.float()
        torch.testing.assert_close(prior.posterior(measurement).mean, expected, rtol=0, atol=1e-5)


def test_rows_that_depend_up_to_rounding_count_once() -> None:
    rows = torch.randn(B, 5, 192, generator=generator(0, "rows"))
    operator = MatrixOperator(SHAPE, torch.cat((rows, rows[:, :1] - rows[:, 3:4]), 1))
    prior = fitted()
    _, measurement = measured(exact(prior), operator, 0.0)
    _, once = measured(exact(prior), MatrixOperator(SHAPE, rows), 0.0)
    torch.testing.assert_close(prior.posterior(measurement).mean, prior.posterior(once).mean, rtol=0, atol=1e-4)


def test_an_operator_of_plain_functions() -> None:
    """Without a spectrum or known inverses: its float64 matrix says what is right."""
    prior = fitted()
    weights = torch.randn(6, 192, generator=generator(0, "weights"), dtype=torch.float64)

    def H(x: Tensor) -> Tensor:
        return x.flatten(1) @ weights.T.to(x.dtype)

    x = exact(prior).sample(generators(0, "x", range(B))).float()
    y = H(x)
    same = MatrixOperator(SHAPE, weights.expand(B, -1, -1))
    operator = LinearOperator.from_functions(H, image_shape=SHAPE)
    found = prior.posterior(Measurement(y, operator, 0.1)).mean
    torch.testing.assert_close(found, prior.posterior(Measurement(y, same, 0.1)).mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["strided_motion_blur", "box_inpainting", "matrix", "null"])
def test_log_evidence(kind: str) -> None:
    """Against the density of y by brute force, on the range of H."""
    prior = fitted("coloured")
    law = exact(prior)
    operator = operator_of(kind)
    _, measurement = measured(law, operator, 0.1)
    found = prior.posterior(measurement).log_evidence
    doubled = operator.with_tensors({n: t.double() for n, t in operator.tensors().items()})
    units = torch.eye(192, dtype=torch.float64).view(192, *SHAPE).expand(B, -1, -1, -1, -1)
    H = doubled.H(units).flatten(2).mT
    covariance = law.covariance()[0]
    for row in range(B):
        left, s, _ = torch.linalg.svd(H[row], full_matrices=False)
        left = left[:, s > 1e-9]
        gap = left.T @ (measurement.y[row].double().flatten() - H[row] @ law.means[0, 0])
        system = left.T @ H[row] @ covariance @ H[row].T @ left + 0.01 * torch.eye(left.shape[1])
        expected = (
            torch.distributions.MultivariateNormal(torch.zeros_like(gap), system).log_prob(gap) if len(gap) else 0
        )
        assert float(found[row]) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)


def test_principal_components() -> None:
    prior = fitted()
    law = exact(prior)
    _, measurement = measured(law, operator_of("box_outpainting"), 0.05)
    directions, deviations = prior.posterior(measurement).principal_components(3)
    exact_directions, exact_deviations = law.given(measurement).principal_components(3)
    torch.testing.assert_close(deviations, exact_deviations.float(), rtol=1e-4, atol=0)
    alignment = (directions * exact_directions).sum((2, 3, 4)).abs()
    torch.testing.assert_close(alignment, torch.ones_like(alignment), rtol=0, atol=1e-2)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_draws_have_the_posterior_s_moments(sigma_y: float) -> None:
    prior = fitted("coloured")
    law = exact(prior)
    n = 4000
    operator = operator_of("box_outpainting").select([1])
    noise = randn(operator.measurement_shape, generators(0, "noise", [0]))
    measurement = Measurement.of(law.sample(generators(0, "x", [0])).float(), operator, sigma_y, noise)
    draws = prior.posterior(measurement.select([0] * n)).sample(generators(0, "draws", range(n))).double().flatten(1)
    truth = law.given(measurement)
    spread = truth.covariance()[0].diagonal().sum()
    assert float((draws.mean(0) - truth.mean.flatten()).square().sum() / spread) < 3 / n
    assert float(draws.var(0).sum() / spread) == pytest.approx(1, abs=0.05)
    again = prior.posterior(measurement.select([0] * 2)).sample(generators(0, "draws", range(2)))
    torch.testing.assert_close(again.double().flatten(1), draws[:2], rtol=0, atol=1e-6)


def test_what_is_known_without_a_measurement() -> None:
    prior = fitted()
    x, sigma = images()[:B], torch.full((B,), 0.5)
    found = prior.unconditional(B).denoise(x, sigma)
    torch.testing.assert_close(found, exact(prior).given_noisy(x, sigma).mean.float(), rtol=0, atol=1e-6)


def test_the_denoiser_is_differentiable() -> None:
    prior = fitted("coloured")
    _, measurement = measured(exact(prior), operator_of("matrix"), 0.1)
    x = images()[:B].requires_grad_()
    prior.posterior(measurement).denoise(x, torch.tensor(0.5)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0


class TestStationary:
    def test_is_the_covariance_that_it_says(self) -> None:
        """Against the dense circulant covariance of one channel."""
        x = torch.randn(200, 1, 6, 8, generator=generator(0, "x"), dtype=torch.float64)
        smooth = x + x.roll(1, -1) + x.roll(1, -2)
        prior = GaussianPrior.fit(0.2 * smooth.float(), form="stationary")
        units = torch.eye(48, dtype=torch.float64).view(48, 1, 6, 8)
        nothing = torch.zeros(48, dtype=torch.float64)
        dense = prior.covariance.filter(units, nothing, lambda c, p: c + 0 * p).flatten(1)
        torch.testing.assert_close(dense, dense.T, rtol=0, atol=1e-12)
        variances, basis = torch.linalg.eigh(dense)
        law = GaussianMixture((1, 6, 8), torch.zeros(1, 1), prior.mean.flatten()[None, None], variances[None, None],
                              basis[None, None], torch.zeros(1, dtype=torch.long))  # fmt: skip
        operator = FAMILIES["strided_motion_blur"](strides=(2,)).sample(2, (1, 6, 8), generator(0, "H"))
        for sigma_y in (0.0, 0.1):
            noise = randn(operator.measurement_shape, generators(0, "noise", range(2)))
            measurement = Measurement.of(0.2 * smooth[:2].float(), operator, sigma_y, noise)
            found, truth = prior.posterior(measurement), law.given(measurement)
            torch.testing.assert_close(found.mean, truth.mean.float(), rtol=0, atol=1e-6)
            seen, sigma = smooth[:2].float(), torch.tensor([0.1, 2.0])
            expected = truth.given_noisy(seen, sigma).mean.float()
            torch.testing.assert_close(found.denoise(seen, sigma), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("sigma_y", [0.0, 0.1])
    @pytest.mark.parametrize("cutoff", [1e-2, 0.2])
    def test_frequencies_agree_with_products(
        self, cutoff: float, sigma_y: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of colour images and a blur that may lose frequencies: divided by each, and by conjugate gradients."""
        prior = GaussianPrior.fit(images(), form="stationary")
        x, measurement = measured(exact(fitted()), blur_that_loses_frequencies(2, cutoff), sigma_y)
        seen, levels = noisy(x, 0.3), torch.tensor([0.01, 0.1, 1.0, 50.0])
        found = prior.posterior(measurement)
        mean, (denoised, variance) = found.mean, found.denoise_with_variance(seen, levels)
        monkeypatch.setattr(posterior, "solver_for", solvers.ConjugateGradients)
        other = prior.posterior(measurement)
        torch.testing.assert_close(mean, other.mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(denoised, other.denoise(seen, levels), rtol=0, atol=1e-6)
        # By units, not by the one probe that the other has.
        units = torch.eye(192).view(192, 1, *SHAPE).expand(-1, B, -1, -1, -1)
        given = prior.posterior(measurement)
        diagonal = torch.stack([given._covariance_times(u[:, None].double())[:, 0].flatten(1)[:, i]
                                for i, u in enumerate(units)], 1)  # fmt: skip
        torch.testing.assert_close(found.variance, diagonal.mean(1).float(), rtol=2e-5, atol=1e-9)
        assert bool((variance < found.variance).all())

    def test_what_hardly_varies_is_measured_too(self) -> None:
        """Of grey images two combinations of the channels have but the floor, which is far below the rest."""
        prior = GaussianPrior.fit(images()[:, :1].expand(-1, 3, -1, -1), form="stationary", floor=1e-16)
        sharp = StridedConvolution(SHAPE, torch.eye(64)[4 * 8 + 4].view(1, 8, 8).expand(B, -1, -1), 1)
        _, measurement = measured(exact(fitted()), sharp, 0.0)
        assert float(prior.posterior(measurement).variance.max()) < 1e-20

    def test_the_evidence_of_a_blur(self) -> None:
        """Against the dense covariance of the measurement."""
        prior = GaussianPrior.fit(images()[:, :1], form="stationary")
        kernel = torch.rand(B, 8, 8, generator=generator(0, "kernel"))
        operator = StridedConvolution((1, 8, 8), kernel / kernel.sum((1, 2), keepdim=True), 2, cutoff=0)
        noise = randn(operator.measurement_shape, generators(0, "noise", range(B)))
        measurement = Measurement.of(images(B)[:, :1], operator, 0.1, noise)
        units = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
        covariance = prior.covariance.filter(units, torch.zeros(64), lambda c, p: c + 0 * p).flatten(1)
        H = operator.H(units.float().expand(B, -1, -1, -1, -1)).flatten(2).double().mT
        of_y = H @ covariance @ H.mT + 0.01 * torch.eye(16, dtype=torch.float64)
        mean = (H @ prior.mean.flatten()[:, None])[..., 0]
        law = torch.distributions.MultivariateNormal(mean, of_y)
        expected = law.log_prob(measurement.y.flatten(1).double())
        torch.testing.assert_close(prior.posterior(measurement).log_evidence, expected, rtol=1e-5, atol=1e-4)

    def test_a_solve_that_does_not_converge_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(solvers, "MAX_ITERATIONS", 1)
        prior = GaussianPrior.fit(images(), form="stationary")
        _, measurement = measured(exact(fitted()), operator_of("box_inpainting"), 0.0)
        with pytest.raises(OperatorError, match=r"operator 'mask' did not converge.*residual is \d"):
            _ = prior.posterior(measurement).mean


def test_images_of_another_shape_are_refused() -> None:
    prior = fitted()
    operator = FAMILIES["box_inpainting"]().sample(1, (3, 4, 4), generator(0, "H"))
    with pytest.raises(ShapeError, match=r"prior is of images \(3, 8, 8\)"):
        prior.posterior(Measurement.of(torch.zeros(1, 3, 4, 4), operator))
    with pytest.raises(ShapeError, match="expected images"):
        prior.unconditional(2).denoise(torch.zeros(2, 3, 4, 4), torch.tensor(1.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["strided_motion_blur", "matrix"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_a_batch_too_large_for_memory_is_conditioned_in_parts(
    monkeypatch: pytest.MonkeyPatch, sigma_y: float, kind: str, form: Form
) -> None:
    """Whichever solver: of the rank's size where that is small, of the measurement's where the rank is large."""
    monkeypatch.setattr(solvers, "SMALL", 8)
    for rank, held in ((5, solvers.HELD), (5, 0), (30, 0)):
        prior = fitted(form, rank)
        _, measurement = measured(exact(prior), operator_of(kind), sigma_y)
        whole = prior.posterior(measurement)
        expected = whole.mean, whole.variance
        with monkeypatch.context() as limited:
            limited.setattr(covariance, "AT_ONCE", {"cpu": 1})
            limited.setattr(solvers, "HELD", held)
            parts = prior.posterior(measurement)
            torch.testing.assert_close(parts.mean, expected[0], rtol=0, atol=1e-6)
            torch.testing.assert_close(parts.variance, expected[1], rtol=1e-6, atol=0)


def test_large_matrices_are_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay in float32, and what is computed with them is what their copy in float64 gives."""
    prior, operator = fitted(), operator_of("matrix")
    x, measurement = measured(exact(prior), operator, 0.0)
    level = torch.tensor([0.1, 0.5, 1, 2])

    def answers() -> list[Tensor]:
        posterior, at = prior.posterior(measurement), noisy(x, 0.5).requires_grad_()
        draws = posterior.sample([generator(0, "draw", i) for i in range(B)])
        estimate = posterior.denoise(at, level)
        [gradient] = torch.autograd.grad(estimate.square().sum(), at)
        return [posterior.mean, posterior.variance, estimate, gradient, draws]

    expected = answers()
    monkeypatch.setattr(solvers, "HELD", 0)
    monkeypatch.setattr(covariance, "AT_ONCE", {"cpu": 1})
    monkeypatch.setattr(solvers, "CONVERTED", 1)
    large = solvers.in_float64(operator)
    assert isinstance(operator, MatrixOperator)
    assert large.tensors()["matrix"].data_ptr() == operator.matrix.data_ptr()
    assert large.H(x.double()).dtype == torch.float64
    for found, wanted in zip(answers(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_a_blur_on_the_verge_of_failing_is_damped_at_every_noise_level(
    monkeypatch: pytest.MonkeyPatch, on_accelerator: bool
) -> None:
    """Whether a factorisation fails is a matter of rounding there: it may at one noise level, and not without any."""
    if on_accelerator:
        monkeypatch.setattr(solvers, "answers_at_once", lambda _: False)
    square = torch.fft.fftfreq(8).mul(8).square()
    frequency = square[:, None] + square
    x = images(200)[:2, :1]
    prior = GaussianPrior.fit(images(200)[:, :1], rank=40)
    for width in (0.45, 0.5, 0.55, 0.6, 0.65):
        kernel = torch.fft.fftshift(torch.fft.ifft2(torch.exp(-width * frequency)).real)
        blur = StridedConvolution((1, 8, 8), (kernel / kernel.sum()).expand(2, 8, 8), 1, 0.0)
        posterior = prior.posterior(Measurement.of(x, blur))
        for sigma in (1e-4, 2e-3, 0.1, 1.0, 80.0):
            assert bool(posterior.denoise(x, torch.tensor(sigma)).isfinite().all()), (width, sigma)


def test_a_system_that_damping_does_not_help_is_an_error() -> None:
    # Without a spectrum, what lies outside of its range is known as well as conjugate gradients find its inverse.
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=generator(i, "Q")))[0] for i in range(2))
    matrix = u * torch.logspace(0, -3, 64) @ v
    operator = LinearOperator.from_functions(lambda x: x.flatten(1) @ matrix.T.to(x), image_shape=(1, 8, 8))
    prior = GaussianPrior.fit(images(200)[:, :1], rank=40)
    with pytest.raises(OperatorError, match="not positive definite"):
        _ = prior.posterior(Measurement.of(images(1)[:, :1], operator)).mean
