"""The objectives: their densities, their values in known cases, and where their gradients go."""

import pytest
import torch
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.diffusion.components import gram_schmidt
from invfusion.diffusion.losses import Condition, DiffusionLoss, InDILoss, MMSELoss, NPPCLoss, component_errors
from invfusion.models import Denoiser, DenoiserConfig, LevelConfig, build_denoiser
from invfusion.operators import Measurement
from invfusion.rng import generator

ARCHITECTURE = DenoiserConfig(
    image_size=8,
    patch_size=2,
    levels=(LevelConfig(width=24, depth=1, kernel=3), LevelConfig(width=48, depth=1)),
    head_dim=8,
    mapping_width=16,
    mapping_depth=1,
    mapping_hidden=16,
    dropout=0.0,
)
B, K = 6, 3


def normal(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=generator(0, name))


def images() -> Tensor:
    return normal(B, 3, 8, 8).clip(-1, 1)


def measured(x: Tensor) -> Measurement:
    family = FAMILIES["matrix"]()
    return Measurement.of(x, family.sample(batch_size=len(x), image_shape=(3, 8, 8), generator=generator(0, "H")))


def trained(**overrides: object) -> Denoiser:
    """Weights moved off their zeros, as training would."""
    denoiser = build_denoiser(ARCHITECTURE, **overrides)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator(0, "shake"))
    return denoiser.eval()


class TestDiffusionLoss:
    def test_noise_levels_are_log_normal(self) -> None:
        log_sigma = DiffusionLoss().noise_levels(40_000, generator(0, "levels")).log()
        assert log_sigma.mean() == pytest.approx(-0.8, abs=0.03)
        assert log_sigma.std() == pytest.approx(1.6, abs=0.03)

    def test_value_of_the_untrained_network(self) -> None:
        """D = c_skip x then, so the weighted error has a closed form."""
        denoiser, x, noise = build_denoiser(ARCHITECTURE), images(), normal(B, 3, 8, 8, name="noise")
        sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 10.0, 80.0])
        u = denoiser.log_variance(sigma.log() / 4)
        s = sigma.view(-1, 1, 1, 1)
        error = 0.25 / (s**2 + 0.25) * (x + s * noise) - x
        expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * error.square().mean((1, 2, 3)) / u.exp() + u
        output = DiffusionLoss().at(denoiser, x, Condition(measured(x)), sigma, noise)
        torch.testing.assert_close(output.per_sample, expected)

    def test_a_batch_of_one_equals_a_slice_of_a_batch(self) -> None:
        denoiser, x, noise = trained(), images(), normal(B, 3, 8, 8, name="noise")
        sigma, measurement = torch.linspace(0.1, 5, B), measured(x)
        whole = DiffusionLoss().at(denoiser, x, Condition(measurement), sigma, noise).per_sample
        for i in range(B):
            row = slice(i, i + 1)
            one = DiffusionLoss().at(denoiser, x[row], Condition(measurement.select(row)), sigma[row], noise[row])
            torch.testing.assert_close(one.per_sample, whole[row], rtol=1e-4, atol=1e-5)

    def test_randomness_comes_from_the_generator_alone(self) -> None:
        denoiser, x = trained(), images()
        first, second, other = (
            DiffusionLoss()(denoiser, x, Condition(), generator(0, stream)).per_sample for stream in ("a", "a", "b")
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other)

    def test_the_best_log_variance_is_that_of_the_error(self) -> None:
        """d/du (e / exp(u) + u) = 0 at u = ln e: the head learns the expected loss."""
        denoiser, x = trained(), images()
        noise, sigma = normal(B, 3, 8, 8, name="noise"), torch.full((B,), 0.5)
        error = DiffusionLoss().at(denoiser, x, Condition(), sigma, noise).logs["weighted_mse"].mean()
        with torch.no_grad():
            denoiser.log_variance.head.weight.zero_()
            denoiser.log_variance.head.bias.fill_(float(error.log()))
        DiffusionLoss().at(denoiser, x, Condition(), sigma, noise).per_sample.mean().backward()
        assert denoiser.log_variance.head.bias.grad.abs().max() < 1e-5


def test_mmse_sees_noise_and_the_measurement_alone() -> None:
    calls = []

    def network(x: Tensor, sigma: Tensor, measurement: Measurement, *_labels: None) -> Tensor:
        calls.append((x, sigma, measurement))
        return torch.zeros_like(x)

    x = images()
    measurement = measured(x)
    output = MMSELoss()(network, x, Condition(measurement), generator(0, "noise"))
    noisy, sigma, seen = calls[0]
    assert torch.equal(sigma, torch.full((B,), 100.0))
    assert noisy.std() == pytest.approx(100, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([noisy.flatten(), x.flatten()]))[0, 1]) < 0.1
    assert seen is measurement
    torch.testing.assert_close(output.per_sample, x.square().mean((1, 2, 3)))


class TestGramSchmidt:
    def test_directions_are_orthonormal(self) -> None:
        units, lengths = gram_schmidt(normal(B, K, 3, 8, 8))
        gram = torch.einsum("bichw,bjchw->bij", units, units)
        torch.testing.assert_close(gram, torch.eye(K).expand(B, K, K), atol=1e-5, rtol=0)
        assert lengths.shape == (B, K)
        assert bool((lengths > 0).all())

    def test_the_first_keeps_its_direction_and_length(self) -> None:
        w = normal(B, K, 3, 8, 8)
        units, lengths = gram_schmidt(w)
        torch.testing.assert_close(units[:, 0] * lengths[:, 0].view(-1, 1, 1, 1), w[:, 0])

    def test_later_directions_do_not_push_earlier_ones(self) -> None:
        w = normal(B, K, 3, 8, 8).requires_grad_()
        units, _ = gram_schmidt(w)
        (units[:, 2] * normal(B, 3, 8, 8, name="probe")).sum().backward()
        assert bool((w.grad[:, :2] == 0).all())
        assert bool((w.grad[:, 2] != 0).any())

    def test_half_precision_is_raised(self) -> None:
        assert gram_schmidt(normal(B, K, 3, 8, 8).half())[0].dtype == torch.float32

    def test_zero_directions_stay_finite(self) -> None:
        w = torch.zeros(B, K, 3, 8, 8, requires_grad=True)
        units, lengths = gram_schmidt(w)
        (units.sum() + lengths.sum()).backward()
        assert bool(torch.isfinite(w.grad).all())


class TestNPPCLoss:
    def test_what_is_captured(self) -> None:
        """Directions that span the error capture all of it; orthogonal ones nothing."""
        error = normal(B, 3, 8, 8)
        w = normal(B, K, 3, 8, 8, name="w")
        spanning = torch.cat([w[:, :2], (error - w[:, 0] + 2 * w[:, 1]).unsqueeze(1)], dim=1)
        torch.testing.assert_close(component_errors(error, spanning)[0], torch.ones(B))
        share = component_errors(error, w)[0]
        assert bool(((share >= 0) & (share < 0.5)).all())

    def test_lengths_learn_the_projected_error(self) -> None:
        error = normal(B, 3, 8, 8)
        units, _ = gram_schmidt(normal(B, 1, 3, 8, 8, name="w"))
        projection = (units[:, 0] * error).sum((1, 2, 3)).abs().view(-1, 1, 1, 1, 1)
        right = component_errors(error, units * projection)[1]
        wrong = component_errors(error, units * projection * 1.5)[1]
        torch.testing.assert_close(right, torch.zeros(B), atol=1e-6, rtol=0)
        assert bool((wrong > right).all())

    def test_the_two_terms_train_what_they_should(self) -> None:
        """Capturing turns directions, never lengths; the length term stretches directions, never turns them."""
        error = normal(B, 3, 8, 8)
        w = normal(B, 1, 3, 8, 8, name="w").requires_grad_()
        captured, length_error = component_errors(error, w)
        turning, stretching = (torch.autograd.grad(t.sum(), w, retain_graph=True)[0] for t in (captured, length_error))
        along = (turning * w).sum((2, 3, 4)).abs() / (turning.flatten(2).norm(dim=2) * w.flatten(2).norm(dim=2))
        assert along.max() < 1e-4
        cosine = torch.cosine_similarity(stretching.flatten(2), w.flatten(2), dim=2).abs()
        torch.testing.assert_close(cosine, torch.ones(B, 1))

    @pytest.mark.parametrize(("settings", "are_right"), [({}, True), ({"length_weight": 0.01}, False)])
    def test_the_default_weight_is_enough_for_lengths(self, settings: dict[str, float], are_right: bool) -> None:
        """Each step that turns a direction lengthens it; the lengths' own term must hold against that.

        Of errors of 64 numbers, two of which stand out, the directions are given, half too long.
        """
        draws, steps, kept = generator(0, "errors"), 500, 100
        deviations = torch.full((64,), 0.3)
        deviations[:2] = torch.tensor([1.0, 0.7])
        squares = (deviations * torch.randn(20_000, 64, generator=draws)).square()
        energy = squares.sum(1)
        best = ((squares[:, :2] / energy[:, None].square()).mean(0) / energy.pow(-2).mean()).sqrt()
        w = (1.5 * torch.diag(best) @ torch.eye(2, 64)).requires_grad_()
        optimizer, loss, lengths = torch.optim.Adam([w], lr=3e-3, betas=(0.9, 0.99)), NPPCLoss(**settings), []

        def network(x: Tensor, *_: object, return_components: bool) -> tuple[Tensor, Tensor]:
            assert return_components
            return torch.zeros_like(x), w.view(1, 2, 1, 8, 8).expand(len(x), -1, -1, -1, -1)

        for _ in range(steps):
            error = (deviations * torch.randn(32, 64, generator=draws)).view(32, 1, 8, 8)
            optimizer.zero_grad()
            loss(network, error, Condition(None), draws).per_sample.mean().backward()
            optimizer.step()
            lengths.append(w.detach().norm(dim=1))
        off = (torch.stack(lengths[-kept:]).mean(0) / best - 1).abs().amax()
        assert bool(off < 0.1) == are_right
        assert are_right or off > 0.2

    def test_the_components_do_not_change_the_mean(self) -> None:
        """The error is detached: the mean's own output weights learn from the squared error alone."""
        denoiser, x = trained(n_components=K), images()
        heads = []
        for weight in (0.0, 1.0):
            loss = NPPCLoss(direction_weight=weight, length_weight=weight)
            denoiser.zero_grad()
            loss(denoiser, x, Condition(measured(x)), generator(0, "noise")).per_sample.mean().backward()
            grad = denoiser.net.patch_out.weight.grad
            heads.append(grad.view(-1, 3 * (1 + K), grad.shape[-1])[:, :3].clone())
        torch.testing.assert_close(heads[0], heads[1])

    def test_all_terms_are_of_order_one(self) -> None:
        x = images()
        output = NPPCLoss()(trained(n_components=K), x, Condition(measured(x)), generator(0, "noise"))
        assert set(output.logs) == {"mse", "captured"}
        assert bool((output.per_sample < 10).all())


class TestInDILoss:
    def test_the_network_sees_a_point_between_the_image_and_its_measurement(self) -> None:
        x, seen = images(), []

        def network(x_t: Tensor, t: Tensor, *condition: object) -> Tensor:
            seen.append((x_t, t, condition))
            return torch.zeros_like(x_t)

        measurement, labels = measured(x), torch.arange(B)
        output = InDILoss(epsilon=0)(network, x, Condition(measurement, labels), generator(0, "indi"))
        ((x_t, t, (given, *rest)),) = seen
        assert given is None
        assert rest == [labels, None]
        assert bool(((t > 0) & (t <= 1)).all())
        share = t.view(-1, 1, 1, 1)
        torch.testing.assert_close(x_t, (1 - share) * x + share * measurement.H_pinv_y)
        torch.testing.assert_close(output.per_sample, x.square().mean((1, 2, 3)))

    def test_its_noise_grows_with_t(self) -> None:
        x = torch.zeros(2000, 3, 8, 8)
        mask = FAMILIES["patch_inpainting"]().sample(
            batch_size=2000, image_shape=(3, 8, 8), generator=generator(0, "H")
        )
        seen = []

        def network(x_t: Tensor, t: Tensor, *_: object) -> Tensor:
            seen.append((x_t.flatten(1).std(1), t))
            return x_t

        InDILoss(epsilon=0.3)(network, x, Condition(Measurement.of(x, mask)), generator(0, "indi"))
        ((stds, t),) = seen
        assert float((stds / t).mean()) == pytest.approx(0.3, abs=0.005)
        assert float(t.mean()) == pytest.approx(0.5, abs=0.03)
