"""The kernel sampler against simulated reference statistics of the published law."""

import math

import pytest
import torch

from invfusion.degradations.motion_blur import StridedMotionBlur
from invfusion.degradations.motion_kernel import motion_kernels, sample_paths, smooth

SIZES = [(8, 8), (9, 9), (8, 13), (15, 8), (32, 17), (8, 256), (256, 8), (100, 37), (256, 256)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("intensity", "steps", "length"), [(0.0, 11.3, 0.39), (0.5, 24.1, 0.47), (1.0, 227.0, 0.73)])
def test_paths_have_the_reference_steps_and_lengths(intensity: float, steps: float, length: float) -> None:
    paths = sample_paths(torch.full((2000,), intensity, dtype=torch.float64), 90.5, seeded())
    travelled = paths.distance.gather(1, paths.n_steps[:, None] - 1)
    assert paths.n_steps.double().mean().item() == pytest.approx(steps, rel=0.08)
    assert travelled.mean().item() / 90.5 == pytest.approx(length, rel=0.08)


def test_without_intensity_paths_are_straight() -> None:
    paths = sample_paths(torch.zeros(20, dtype=torch.float64), 90.5, seeded())
    step = paths.points[:, 1:3] - paths.points[:, :2]
    cross = step[:, 0, 0] * step[:, 1, 1] - step[:, 0, 1] * step[:, 1, 0]
    assert cross.abs().max() < 1e-9


@pytest.mark.parametrize(
    ("size", "intensity", "area", "radius"),
    [(32, 0.0, 27, 5.0), (32, 0.5, 33, 5.7), (32, 1.0, 35, 5.4), (64, None, 76, 9.7)],
)
def test_kernels_have_the_reference_area_and_radius(
    size: int, intensity: float | None, area: float, radius: float
) -> None:
    levels = torch.rand(600, generator=seeded()) if intensity is None else torch.full((600,), intensity)
    kernels = motion_kernels(levels, size, size, seeded())
    assert (1 / kernels.square().sum(dim=(1, 2))).mean().item() == pytest.approx(area, rel=0.15)
    assert rms_radius(kernels).mean().item() == pytest.approx(radius, rel=0.15)


def rms_radius(kernels: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in kernels.shape[1:])
    total = torch.zeros(len(kernels))
    for marginal, position in ((kernels.sum(dim=2), rows), (kernels.sum(dim=1), columns)):
        mean = (marginal * position).sum(dim=1, keepdim=True)
        total += (marginal * (position - mean) ** 2).sum(dim=1)
    return total.sqrt()


def test_radius_grows_with_the_image() -> None:
    levels = torch.rand(300, generator=seeded())
    small, large = (rms_radius(motion_kernels(levels, n, n, seeded())).mean() for n in (16, 64))
    assert large / small == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_kernels_of_every_size_are_finite_and_sum_to_one(h: int, w: int) -> None:
    n = 4 if h * w > 10_000 else 100
    kernels = motion_kernels(torch.linspace(0, 1, n), h, w, seeded())
    assert kernels.shape == (n, h, w)
    assert kernels.dtype == torch.float32
    assert bool(torch.isfinite(kernels).all())
    assert kernels.min() >= 0
    torch.testing.assert_close(kernels.sum(dim=(1, 2)), torch.ones(n))


@pytest.mark.parametrize("size", [8, 9, 16, 17])
def test_kernels_do_not_move_the_image_on_average(size: int) -> None:
    kernels = motion_kernels(torch.zeros(2000), size, size, seeded())
    column = (kernels.sum(dim=1) * torch.arange(size)).sum(dim=1).mean().item()
    assert abs(column - size // 2) < 0.1


def test_smoothing_has_the_stride_as_standard_deviation() -> None:
    point = torch.zeros(1, 65, 65)
    point[0, 32, 32] = 1
    for std in (2, 4, 8):
        smoothed = smooth(point, std)
        assert rms_radius(smoothed).item() == pytest.approx(std * math.sqrt(2), rel=0.01)
        assert smoothed.argmax() == point.argmax()


@pytest.mark.parametrize(("h", "w"), [(8, 8), (8, 256), (24, 16), (256, 8), (256, 256)])
def test_the_family_works_at_every_size(h: int, w: int) -> None:
    operator = StridedMotionBlur().sample(2, (3, h, w), seeded())
    assert operator.kernel.shape == (2, h, w)
    torch.testing.assert_close(operator.kernel.sum(dim=(1, 2)), torch.ones(2))
    assert bool((operator.norm > 0).all())
