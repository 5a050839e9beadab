"""The Wiener filter of photographs: how few steps it takes, and that they are enough."""

import pytest
import torch
from torch import Tensor

from invfusion.operators import Blur, Downsampling, Inpainting, LinearOperator, MaskOperator, Measurement, scaled
from invfusion.restoration import wiener
from invfusion.restoration.photos import load_photos
from invfusion.restoration.requests import gaussian_kernel
from invfusion.rng import generator


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many conjugate gradients took, time by time."""
    taken: list[int] = []
    solve = wiener.conjugate_gradients

    def counted(*args: object, **settings: object) -> object:
        solution = solve(*args, **settings)  # type: ignore[arg-type]
        taken.append(solution.n_iterations)
        return solution

    monkeypatch.setattr(wiener, "conjugate_gradients", counted)
    return taken


def measured(operator: LinearOperator, sigma_y: float | Tensor) -> Measurement:
    x = load_photos().law_of((2, *operator.image_shape)).sample([generator(0, "x", i) for i in range(2)])
    y = operator.H(x)
    return Measurement(
        y + torch.as_tensor(sigma_y).view(-1, 1, 1, 1) * torch.randn(y.shape, generator=generator(0, "n")),
        operator,
        sigma_y,
    )


def estimate(measurement: Measurement) -> Tensor:
    return load_photos().law_of((2, *measurement.operator.image_shape), measurement).gaussian_mean


@pytest.mark.parametrize("sigma_y", [0.0, 0.02, torch.tensor([0.02, 0.3])], ids=["exact", "noisy", "of two levels"])
@pytest.mark.parametrize(
    "operator",
    [
        Inpainting((3, 60, 84), torch.zeros(60, 84)),
        Blur((3, 60, 84), torch.rand(5, 7, generator=generator(0, "kernel")) / 17, "valid"),
        Blur((3, 60, 84), gaussian_kernel(2.0), "reflect"),
        Blur((3, 60, 84), torch.rand(2, 5, 7, generator=generator(0, "kernel")) / 17, "valid"),
        *(Downsampling((3, 60, 84), 3, kind) for kind in ("bicubic", "area", "lanczos", "nearest")),  # type: ignore[arg-type]
        Downsampling((1, 60, 84), 2),
    ],
    ids=lambda value: f"{value.kind} {getattr(value, 'filter', '')}",
)
def test_few_steps_reach_the_filter_where_nothing_is_missing_within(
    operator: LinearOperator, sigma_y: float | Tensor, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = measured(operator, sigma_y)
    found = estimate(measurement)
    # Where all is known there is nothing to solve.
    assert max(steps, default=0) <= 8
    monkeypatch.setattr(wiener, "FINE_TOLERANCE", 1e-7)
    exact = estimate(measurement)
    assert (found - exact).abs().max() < 0.01
    assert (found - exact).square().mean().sqrt() < 5e-4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_scattered_pixels_are_interpolated_to_begin_with(
    share: float, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = (torch.rand(60, 84, generator=generator(0, "mask")) < share).float()
    measurement = measured(Inpainting((3, 60, 84), missing), 0.0)
    found = estimate(measurement)
    monkeypatch.setattr(wiener, "MAX_ITERATIONS", 2000)
    monkeypatch.setattr(wiener, "TOLERANCE", 1e-6)
    exact = estimate(measurement)
    monkeypatch.setattr(wiener, "NEAR", 0.01)
    monkeypatch.setattr(wiener, "TOLERANCE", 3e-3)
    from_zero = estimate(measurement)
    assert steps[0] < steps[2]
    assert (found - exact).square().mean() < 0.8 * (from_zero - exact).square().mean()


def test_each_of_a_batch_is_restored_as_if_it_were_alone() -> None:
    kernels = torch.rand(2, 5, 7, generator=generator(0, "kernel")) / 17
    shape = (3, 40, 52)
    scattered = (torch.rand(40, 52, generator=generator(0, "mask")) < 0.5).float()
    hole = torch.zeros(40, 52)
    hole[10:30, 10:40] = 1
    masks = torch.stack([hole, scattered])[:, None]
    for operator, of_one in (
        (Blur(shape, kernels, "valid"), lambda i: Blur(shape, kernels[i], "valid")),
        (MaskOperator(shape, 1 - masks), lambda i: MaskOperator(shape, 1 - masks[i : i + 1])),
        (Downsampling(shape, 2), lambda _: Downsampling(shape, 2)),
    ):
        measurement = measured(operator, torch.tensor([0.02, 0.2]))
        together = estimate(measurement)
        for i in range(2):
            alone = Measurement(measurement.y[i : i + 1], of_one(i), measurement.sigma_y[i : i + 1])
            found = load_photos().law_of((1, *shape), alone).gaussian_mean
            torch.testing.assert_close(together[i : i + 1], found, rtol=0, atol=2e-3)


def test_kernels_as_large_as_the_image_do_not_take_the_memory_of_their_strips(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = Blur((3, 24, 30), torch.full((21, 19), 1 / 399), "valid")
    measurement = measured(operator, 0.02)
    found = estimate(measurement)
    monkeypatch.setattr(wiener, "MOST_ENTRIES", 10_000)
    monkeypatch.setattr(wiener, "TOLERANCE", 1e-6)
    torch.testing.assert_close(found, estimate(measurement), rtol=0, atol=5e-3)
    assert steps[0] < steps[1]


def test_values_of_any_unit_are_no_factor_of_reduction() -> None:
    for factor in (0.5, -1.0, 255.0):
        operator = scaled(Inpainting((3, 20, 24), torch.zeros(20, 24)), factor)
        assert estimate(measured(operator, 0.05)).shape == (2, 3, 20, 24)


def test_rows_of_different_kinds_are_each_as_if_alone() -> None:
    """With noise and without, with a hole and without, of a noise that the network knows and of one beyond it."""
    shape = (3, 40, 52)
    masks = torch.ones(3, 1, 40, 52)
    masks[1, :, 10:30, 10:40] = 0
    operator, levels = MaskOperator(shape, masks), torch.tensor([0.05, 0.0, 0.5])
    x = load_photos().law_of((3, *shape)).sample([generator(0, "x", i) for i in range(3)])
    noise = torch.randn(x.shape, generator=generator(0, "n"))
    measurement = Measurement.of(x, operator, levels, noise)
    together = load_photos().law_of((3, *shape), measurement)
    draws = together.sample([generator(0, "draw", i) for i in range(3)])
    for i in range(3):
        alone = load_photos().law_of((1, *shape), measurement.select([i]))
        torch.testing.assert_close(together.gaussian_mean[i], alone.gaussian_mean[0], rtol=0, atol=1e-4)
        # The network's products of low precision may differ with the batch.
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=0, atol=4e-3)
        torch.testing.assert_close(draws[i], alone.sample([generator(0, "draw", i)])[0], rtol=0, atol=4e-3)
