"""Every sampler against theory, for a Gaussian prior: the law of its output is known exactly.

The theory is written down afresh from the papers, in dense matrices, singular vectors and, where the paper has them,
variance-preserving coordinates. Each algorithm's own bias is part of it.
"""

import math
from itertools import pairwise

import pytest
import torch
from linear_gaussian import SHAPE, ExactDenoiser, N, Problem, affine_denoiser, law, prior
from torch import Tensor

from invfusion.diffusion.schedules import ddpm_ladder, edm_sigmas
from invfusion.samplers import (
    DAPS,
    DDNM,
    DDRM,
    DEIS,
    MMSE,
    DiffPIR,
    DPMpp2M,
    Flow,
    Heun,
    InDI,
    PiGDM,
    Pivot,
    UnrolledDDRM,
)
from invfusion.samplers.pivot import pivot

EYE = torch.eye(N, dtype=torch.float64)
PROBLEMS = [(name, sigma_y) for name in ("mask", "blur", "matrix") for sigma_y in (0.0, 0.1)]


@pytest.fixture(params=PROBLEMS, ids=[f"{name}-{sigma_y}" for name, sigma_y in PROBLEMS])
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem.of(*request.param)


class Law:
    """Mean and covariance of the state, moved by affine steps x -> A x + b + C z."""

    def __init__(self, mean: Tensor, C: Tensor) -> None:
        self.mean, self.covariance = mean, C @ C.T

    def step(self, A: Tensor, b: Tensor, C: Tensor) -> None:
        self.mean = A @ self.mean + b
        self.covariance = A @ self.covariance @ A.T + C @ C.T


def assert_law(sampler, problem: Problem, expected: Law, nfe: int) -> None:
    denoiser = ExactDenoiser()
    mean, covariance, reported = law(sampler, denoiser, problem.measurement)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(covariance, expected.covariance, rtol=1e-5, atol=1e-5)
    assert reported == nfe
    assert denoiser.calls == 2 * nfe, "once for the number of draws, once for the law"


def diagonal_step(problem: Problem, sigma: float, on_D: Tensor, on_x: Tensor, on_y: Tensor, on_z: Tensor) -> tuple:
    """The step whose coordinates along the right singular vectors are weighted sums of D, x, y and z."""
    V = problem.V
    G, g = affine_denoiser(sigma, *prior())
    A = V @ (on_D[:, None] * (V.T @ G) + on_x[:, None] * V.T)
    b = V @ (on_D * (V.T @ g) + on_y * problem.y_bar())
    return A, b, V * on_z


def noise_along(problem: Problem) -> Tensor:
    """sigma_y / q along each right singular vector; infinite where nothing is measured."""
    return torch.where(problem.q > 0, problem.sigma_y / problem.q.clamp(min=1e-9), math.inf)


@pytest.mark.parametrize("sampler", [DDRM(n_steps=8), UnrolledDDRM(n_steps=5, eta=0.6, eta_b=0.9)])
def test_ddrm(problem: Problem, sampler) -> None:
    """Kawar et al. 2022, Eqs. 7 and 8, coordinate by coordinate."""
    eta, eta_b, keep = sampler.eta, sampler.eta_b, math.sqrt(1 - sampler.eta**2)
    s, seen = noise_along(problem), problem.q > 0
    sigmas = edm_sigmas(sampler.n_steps).tolist()
    above = seen & (s < sigmas[0])
    std = torch.where(above, (sigmas[0] ** 2 - s.where(above, 0) ** 2).sqrt(), sigmas[0])
    expected = Law(problem.V @ torch.where(above, problem.y_bar(), 0), problem.V * std)
    for sigma, t in pairwise(sigmas):
        on_D, on_x, on_y, on_z = torch.zeros(4, N).double()
        for j in range(N):
            if not seen[j]:
                on_D[j], on_x[j], on_z[j] = 1 - t * keep / sigma, t * keep / sigma, t * eta
            elif s[j] <= t:
                on_D[j], on_y[j], on_z[j] = 1 - eta_b, eta_b, math.sqrt(t**2 - (eta_b * s[j]) ** 2)
            else:
                on_D[j], on_y[j], on_z[j] = 1 - t * keep / s[j], t * keep / s[j], t * eta
        on_z = on_z if t > 0 else torch.zeros_like(on_z)
        expected.step(*diagonal_step(problem, sigma, on_D, on_x, on_y, on_z))
    assert_law(sampler, problem, expected, sampler.n_steps)


def test_ddnm(problem: Problem) -> None:
    """Wang et al. 2023: Algorithm 1 without noise, Eqs. 17 and 51 with noise."""
    sampler = DDNM(n_steps=8)
    eta, keep = sampler.eta, math.sqrt(1 - sampler.eta**2)
    s, seen = noise_along(problem), problem.q > 0
    sigmas = edm_sigmas(sampler.n_steps).tolist()
    expected = Law(torch.zeros(N).double(), sigmas[0] * EYE)
    for sigma, t in pairwise(sigmas):
        old = t * keep / sigma
        on_D, on_x, on_z = (torch.full((N,), w).double() for w in (1 - old, old, t * eta))
        on_y = torch.zeros(N).double()
        for j in range(N):
            if not seen[j]:
                continue
            if problem.sigma_y == 0:
                on_D[j], on_y[j] = -old, 1
            elif s[j] <= t:
                on_D[j], on_x[j], on_y[j], on_z[j] = 0, 0, 1, math.sqrt(t**2 - s[j] ** 2)
            else:
                on_D[j], on_x[j], on_y[j], on_z[j] = 1 - t * keep / s[j], 0, t * keep / s[j], t * eta
        expected.step(*diagonal_step(problem, sigma, on_D, on_x, on_y, on_z))
    assert_law(sampler, problem, expected, 8)


@pytest.mark.parametrize("sampler", [DDRM(), DDNM(n_steps=20)], ids=lambda sampler: sampler.kind)
@pytest.mark.parametrize("name", ["mask", "blur", "matrix"])
def test_without_noise_the_measurement_is_met_exactly(name: str, sampler) -> None:
    problem = Problem.of(name, 0.0)
    mean, covariance, _ = law(sampler, ExactDenoiser(), problem.measurement)
    torch.testing.assert_close(problem.A @ mean, problem.y, rtol=0, atol=1e-6)
    assert float((problem.A @ covariance @ problem.A.T).abs().max()) < 1e-10


@pytest.mark.parametrize("name", ["mask", "blur", "matrix"])
def test_pigdm_meets_a_noiseless_measurement_almost(name: str) -> None:
    """Its last correction is that of the residual at sigma = 0.01, through a Jacobian that is nearly the identity."""
    problem = Problem.of(name, 0.0)
    mean, covariance, _ = law(PiGDM(), ExactDenoiser(), problem.measurement)
    torch.testing.assert_close(problem.A @ mean, problem.y, rtol=0, atol=2e-3)
    assert float((problem.A @ covariance @ problem.A.T).abs().max()) < 2e-4


def test_diffpir(problem: Problem) -> None:
    """Zhu et al. 2023, Algorithm 1, in variance-preserving coordinates."""
    sampler = DiffPIR(n_steps=8, lam=3.0, zeta=0.3)
    A, y, zeta = problem.A, problem.y, sampler.zeta
    sigmas = ddpm_ladder(8)
    a = 1 / (1 + sigmas**2)
    expected = Law(torch.zeros(N).double(), (1 - a[0]).sqrt() * EYE)
    expected.covariance = sigmas[0] ** 2 * a[0] * EYE
    for (a_t, a_s), sigma in zip(pairwise(a.tolist()), sigmas.tolist(), strict=False):
        G, g = affine_denoiser(sigma, *prior())
        G = G / math.sqrt(a_t)  # the denoiser of x_VP = sqrt(a) x_VE
        if problem.sigma_y > 0:
            rho = sampler.lam * problem.sigma_y**2 * a_t / (1 - a_t)
            inverse = torch.linalg.inv(A.T @ A + rho * EYE)
            on_D, on_y = rho * inverse, inverse @ A.T
        else:
            on_y = torch.linalg.pinv(A, rtol=1e-8)
            on_D = EYE - on_y @ A
        x0, shift = on_D @ G, on_D @ g + on_y @ y
        kept = math.sqrt(1 - a_s) * math.sqrt(1 - zeta) / math.sqrt(1 - a_t)
        on_x0 = math.sqrt(a_s) - kept * math.sqrt(a_t)
        expected.step(on_x0 * x0 + kept * EYE, on_x0 * shift, math.sqrt((1 - a_s) * zeta) * EYE)
    assert_law(sampler, problem, expected, 8)


def test_the_pivot_s_identity(problem: Problem) -> None:
    """Mammadov et al. 2026: E[x | x_sigma, y] is the mean of x given mu* and its anisotropic noise, for every y."""
    mean, covariance = prior()
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in (0.05, 0.7, 20.0):
        level = max(problem.sigma_y, 1e-5)
        A, mu = problem.A, pivot(problem.measurement(1), x, sigma).flatten()
        S = torch.linalg.inv(EYE / sigma**2 + A.T @ A / level**2)
        denoised = mean + covariance @ torch.linalg.solve(covariance + S, mu - mean)
        both = torch.linalg.inv(torch.linalg.inv(covariance) + EYE / sigma**2 + A.T @ A / level**2)
        known = torch.linalg.solve(covariance, mean) + x.flatten() / sigma**2 + A.T @ problem.y / level**2
        torch.testing.assert_close(denoised, both @ known, rtol=0, atol=1e-12 if problem.sigma_y else 1e-4)


def test_pivot(problem: Problem) -> None:
    """Euler and Heun steps with Tweedie's formula for the pivot's noise, coordinate by coordinate."""
    sampler = Pivot(n_steps=6)
    s, seen = noise_along(problem), problem.q > 0
    sigmas = edm_sigmas(6).tolist()
    V, y_bar = problem.V, problem.y_bar()

    def estimate(sigma: float) -> tuple[Tensor, Tensor]:
        gain = torch.where(seen, sigma**2 / (sigma**2 + s.where(seen, 0).square()), 0)
        G, g = affine_denoiser(sigma, *prior())
        to_mu, mu_shift = V @ torch.diag(1 - gain) @ V.T, V @ (gain * y_bar)
        left, taken = V @ torch.diag(1 - gain) @ V.T, V @ torch.diag(gain) @ V.T
        return (left @ G + taken) @ to_mu, (left @ G + taken) @ mu_shift + left @ g

    expected = Law(torch.zeros(N).double(), sigmas[0] * EYE)
    for sigma, t in pairwise(sigmas):
        E, e = estimate(sigma)
        slope, shift = (EYE - E) / sigma, -e / sigma
        there, there_shift = EYE + (t - sigma) * slope, (t - sigma) * shift
        if t > 0:
            E, e = estimate(t)
            slope = (slope + (EYE - E) @ there / t) / 2
            shift = (shift + ((EYE - E) @ there_shift - e) / t) / 2
        expected.step(EYE + (t - sigma) * slope, (t - sigma) * shift, 0 * EYE)
    assert_law(sampler, problem, expected, 11)


@pytest.mark.parametrize("eta", [None, 0.4])
def test_pigdm(problem: Problem, eta: float | None) -> None:
    """Song et al. 2023, Algorithm 1, in variance-preserving coordinates."""
    sampler = PiGDM(n_steps=8, eta=eta)
    eta, A, y = 1.0 if eta is None else eta, problem.A, problem.y
    sigmas = ddpm_ladder(8)
    a = 1 / (1 + sigmas**2)
    start = torch.linalg.pinv(A, rtol=1e-8) @ y
    expected = Law(a[0].sqrt() * start, (1 - a[0]).sqrt() * EYE)
    for (a_t, a_s), sigma in zip(pairwise(a.tolist()), sigmas.tolist(), strict=False):
        G, g = affine_denoiser(sigma, *prior())
        G = G / math.sqrt(a_t)  # the denoiser of x_VP = sqrt(a) x_VE
        c1 = eta * math.sqrt(max((1 - a_t / a_s) * (1 - a_s) / (1 - a_t), 0))
        c2 = math.sqrt(max(1 - a_s - c1**2, 0))
        r2 = (1 - a_t) / 1.0
        noise = problem.sigma_y**2 / r2 * torch.eye(len(A)).double()
        pull = math.sqrt(a_s * a_t) * G.T @ A.T @ torch.linalg.pinv(A @ A.T + noise, rtol=1e-10)
        epsilon = c2 / math.sqrt(1 - a_t)
        on_D = (math.sqrt(a_s) - epsilon * math.sqrt(a_t)) * EYE - pull @ A
        expected.step(on_D @ G + epsilon * EYE, on_D @ g + pull @ y, c1 * EYE)
    assert_law(sampler, problem, expected, 8)


def test_daps(problem: Problem) -> None:
    """Zhang et al. 2024, Algorithm 1: Euler, then Langevin, then noise."""
    sampler = DAPS(n_levels=3, n_ode_steps=2, n_langevin_steps=3, lr=2e-5)
    A, y = problem.A, problem.y
    sigmas = edm_sigmas(3, 100, 0.1).tolist()
    expected = Law(torch.zeros(N).double(), sigmas[0] * EYE)
    for i, (sigma, t) in enumerate(pairwise(sigmas)):
        to_x0, x0_shift = EYE, torch.zeros(N).double()
        for s, u in pairwise(edm_sigmas(3, sigma, 0.01).tolist()[:-1]):
            G, g = affine_denoiser(s, *prior())
            step = EYE + (u - s) / s * (EYE - G)
            to_x0, x0_shift = step @ to_x0, step @ x0_shift - (u - s) / s * g
        expected.step(to_x0, x0_shift, 0 * EYE)
        lr = 2e-5 * (1 - 0.99 * i / 3) / float(problem.q.max()) ** 2
        lr = min(lr, sigma**2)
        # x_k = M x_{k-1} + lr (A^T y / tau^2 + x0 / sigma^2) + sqrt(2 lr) z, from x_0 = x0.
        M = EYE - lr * (A.T @ A / 0.01**2 + EYE / sigma**2)
        on_x0, shift, noise = EYE, torch.zeros(N).double(), torch.zeros(N, N).double()
        for _ in range(3):
            on_x0 = M @ on_x0 + lr / sigma**2 * EYE
            shift = M @ shift + lr * A.T @ y / 0.01**2
            noise = M @ noise @ M.T + 2 * lr * EYE
        expected.step(on_x0, shift, torch.linalg.cholesky(noise + t**2 * EYE))
    assert_law(sampler, problem, expected, 6)


def test_daps_langevin_reaches_its_stationary_law() -> None:
    """With many steps x_0 follows N(x_ode, sigma^2) times the likelihood, widened as unadjusted steps are known to be.

    Along a singular vector of precision p, the variance is 1 / p / (1 - lr p / 2).
    """
    problem = Problem.of("matrix", 0.3)
    sampler = DAPS(n_levels=1, n_ode_steps=1, n_langevin_steps=400, lr=9e-3, tau=0.3)
    mean, covariance, _ = law(sampler, ExactDenoiser(covariance=1e-12 * EYE), problem.measurement)
    seen, sigma = problem.q > 0.4 * problem.q.max(), 100.0
    assert int(seen.sum()) >= 4
    V, q, lr = problem.V[:, seen], problem.q[seen], 9e-3 / float(problem.q.max()) ** 2
    p = q**2 / 0.3**2 + 1 / sigma**2
    torch.testing.assert_close(V.T @ covariance @ V, torch.diag(1 / p / (1 - lr * p / 2)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(V.T @ mean, problem.y_bar()[seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("sampler", "nfe", "tolerance"),
    [
        (Heun(n_steps=64), 127, 5e-3),
        (Heun(n_steps=64, S_churn=20, S_max=50), 127, 2e-2),
        (DPMpp2M(n_steps=100), 100, 5e-3),
        (DEIS(n_steps=100), 100, 5e-3),
        (Flow(n_steps=64), 127, 5e-3),
    ],
    ids=["heun", "heun with churn", "dpmpp_2m", "deis", "flow"],
)
@pytest.mark.parametrize("name", ["mask", "blur", "matrix"])
def test_diffusion_samplers_reach_the_posterior(name: str, sampler, nfe: int, tolerance: float) -> None:
    """With the denoiser that knows y, E[x | x_sigma, y], they draw from the posterior.

    The flow F carries N(mean, covariance + 80^2) to the posterior exactly; they start it from N(0, 80^2).
    """
    problem = Problem.of(name, 0.1)
    exact_mean, exact_covariance = problem.posterior()
    mean, covariance, reported = law(sampler, ExactDenoiser(exact_mean, exact_covariance), problem.measurement)
    values, vectors = torch.linalg.eigh(exact_covariance)
    F = vectors * (values.clamp(min=0) / (values + 80.0**2)).sqrt() @ vectors.T
    torch.testing.assert_close(mean, exact_mean - F @ exact_mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(covariance, 80**2 * F @ F.T, rtol=0, atol=tolerance)
    assert reported == nfe


@pytest.mark.parametrize("sampler_type", [DPMpp2M, DEIS])
def test_multistep_samplers_are_of_second_order(sampler_type: type[DPMpp2M | DEIS]) -> None:
    """Halving the steps in log sigma divides the error of the flow by four."""
    mean, covariance = prior()

    def error(n: int) -> float:
        sampler = sampler_type(n_steps=n, sigma_min=0.3, sigma_max=3)
        _, actual, _ = law(sampler, ExactDenoiser(), lambda _: None)
        G, _ = affine_denoiser(0.3, mean, covariance)
        # The flow keeps the law: from 3 I to this, and D at the end.
        values, vectors = torch.linalg.eigh(covariance)
        flow = vectors * ((values + 0.3**2) / (values + 3**2)).sqrt() @ vectors.T * 3
        return float((actual - G @ flow @ flow.T @ G.T).abs().max())

    assert error(80) / error(160) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(("n", "tolerance"), [(8, 0.09), (10, 0.03), (20, 0.03)])
def test_few_calls_of_deis_keep_the_spread_of_a_gaussian(n: int, tolerance: float) -> None:
    """Of all variances from 0.01 to 16, where DPM-Solver++(2M) in ten calls is 8 to 16% too wide."""
    variances = torch.logspace(-2, 1.2, 17)
    start = torch.ones(1, 1, 1, 17)

    def denoise(x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        return variances / (variances + sigma**2) * x

    def ratios(sampler: DEIS | DPMpp2M) -> Tensor:
        return sampler.sample(denoise, None, start).x.flatten() / variances.sqrt()

    assert float(ratios(DEIS(n_steps=n)).log().abs().max()) < tolerance
    assert float(ratios(DPMpp2M(n_steps=10)).min()) > 1.07


def test_mmse_is_the_posterior_mean() -> None:
    problem = Problem.of("matrix", 0.1)
    exact_mean, _ = problem.posterior()
    mean, covariance, nfe = law(MMSE(), ExactDenoiser(*problem.posterior()), problem.measurement)
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=1e-3)
    assert float(covariance.abs().max()) < 1e-3
    assert nfe == 1


def test_indi_carries_its_start_to_the_posterior_mean_or_to_the_prior() -> None:
    """In the limit of many steps InDI is the flow of x_t = (1 - t) x + t (H_pinv y + epsilon n).

    With the exact E[x | x_t], pixels that are seen keep their value up to epsilon, and hidden ones, whose start is
    epsilon n, are carried to N(0, v): InDI draws them from the prior, whatever the pixels beside them show.
    """
    v, epsilon, problem = 0.25, 0.1, Problem.of("mask", 0.0)
    hidden = (problem.A.diagonal() == 0).double()

    class Exact:
        def __call__(self, x_t: Tensor, t: Tensor, *_: object) -> Tensor:
            kept = 1 - t[0].double() * hidden.view(1, 1, 4, 4)
            return x_t * v * kept / (v * kept**2 + (epsilon * t[0]) ** 2)

    mean, covariance, nfe = law(InDI(n_steps=2000, epsilon=epsilon), Exact(), problem.measurement)
    assert nfe == 2000
    torch.testing.assert_close(covariance.diagonal() * hidden, v * hidden, rtol=0.01, atol=0.02)
    torch.testing.assert_close(mean * hidden, 0 * mean)
    # E[x | x + epsilon n] flows to the seen value shrunk by the root of v / (v + epsilon^2).
    torch.testing.assert_close(mean * (1 - hidden), problem.y * math.sqrt(v / (v + epsilon**2)), rtol=1e-2, atol=1e-4)


def test_indi_takes_the_steps_of_its_algorithm(problem: Problem) -> None:
    """x_{t - d} = d / t F(x_t, t) + (1 - d / t) x_t, from H_pinv y + epsilon n."""
    expected = Law(torch.linalg.pinv(problem.A, rtol=1e-8) @ problem.y, 0.01 * EYE)
    d = 1 / 5
    for t in (1.0, 0.8, 0.6, 0.4, 0.2):
        G, g = affine_denoiser(t, *prior())
        expected.step(d / t * G + (1 - d / t) * EYE, d / t * g, 0 * EYE)
    assert_law(InDI(n_steps=5), problem, expected, 5)
