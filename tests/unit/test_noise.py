"""Noise has the moments that it states, and is refused where it is not defined."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from invfusion.degradations import FAMILIES
from invfusion.errors import OperatorError
from invfusion.noise import AnyNoise, GaussianNoise, PoissonNoise
from invfusion.rng import generator

SHAPE = (3, 8, 8)
NONNEGATIVE = [kind for kind, family in FAMILIES.items() if family().is_nonnegative and kind != "null"]


def draw(kind: str, n: int = 512) -> tuple[torch.Tensor, object]:
    """One image n times, with one operator."""
    family = FAMILIES[kind](**({"strides": (2,)} if kind == "strided_motion_blur" else {}))
    operator = family.sample(1, SHAPE, generator(0, "H")).select([0] * n)
    return (torch.rand(1, *SHAPE, generator=generator(0, "x")) * 2 - 1).expand(n, -1, -1, -1), operator


def test_the_families_with_negative_entries_are_known() -> None:
    assert set(FAMILIES) - set(NONNEGATIVE) == {"matrix", "null", "downsampling", "compressed_sensing"}
    for kind in NONNEGATIVE:
        _, operator = draw(kind, 1)
        assert float(operator.H(torch.rand(1, *SHAPE, generator=generator(1, "u"))).min()) > -1e-5


@pytest.mark.parametrize("kind", NONNEGATIVE)
def test_poisson_measurements_are_unbiased_with_the_stated_deviation(kind: str) -> None:
    x, operator = draw(kind)
    measurement = PoissonNoise(peak=20).measure(x, operator, generator(0, "n"))
    error = measurement.y - operator.H(x)
    seen = operator.H(torch.ones_like(x)) > 0
    assert float(error.mean(0).abs().max()) < 0.1
    assert float(error[seen].square().mean().sqrt()) == pytest.approx(float(measurement.sigma_y.mean()), rel=0.05)
    # A count is a whole number.
    counts = (measurement.y + operator.H(torch.ones_like(x))) * 20 / 2
    torch.testing.assert_close(counts, counts.round(), atol=1e-3, rtol=0)


def test_more_light_is_less_noise() -> None:
    x, operator = draw("box_inpainting")
    levels = [float(PoissonNoise(peak=p).measure(x, operator, generator(0, "n")).sigma_y.mean()) for p in (5, 20)]
    assert levels[0] == pytest.approx(2 * levels[1], rel=0.05)


def test_negative_intensities_have_no_counts() -> None:
    x, operator = draw("matrix", 4)
    with pytest.raises(OperatorError, match="'matrix' has negative entries"):
        PoissonNoise(peak=10).measure(x, operator, generator(0, "n"))


def test_nothing_measured_has_no_noise() -> None:
    x, operator = draw("null", 4)
    measurement = PoissonNoise(peak=10).measure(x, operator, generator(0, "n"))
    assert measurement.y.numel() == 0
    assert measurement.sigma_y.tolist() == [0.0] * 4


@pytest.mark.parametrize("noise", [GaussianNoise(sigma_y=(0.1, 0.4)), PoissonNoise(peak=(5, 50))])
def test_the_same_generator_gives_the_same_measurement(noise: AnyNoise) -> None:
    x, operator = draw("patch_inpainting", 8)
    first, again = (noise.measure(x, operator, generator(0, "n")) for _ in range(2))
    assert torch.equal(first.y, again.y)
    assert len(set(first.sigma_y.tolist())) == 8, "each sample has its own level"


def test_one_number_is_a_range() -> None:
    adapter: TypeAdapter = TypeAdapter(AnyNoise)
    assert adapter.validate_python({"kind": "gaussian", "sigma_y": 0.1}) == GaussianNoise(sigma_y=(0.1, 0.1))
    assert GaussianNoise().is_absent
    for wrong in ({"kind": "gaussian", "sigma_y": [0.2, 0.1]}, {"kind": "poisson", "peak": 0}, {"kind": "poisson"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
