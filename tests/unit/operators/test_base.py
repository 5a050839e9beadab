import pytest
import torch

from invfusion.errors import ShapeError
from invfusion.operators import MaskOperator, MatrixOperator, Measurement, StridedConvolution


def half_mask(batch: int = 2) -> MaskOperator:
    mask = torch.zeros(batch, 1, 4, 4)
    mask[..., :2] = 1
    return MaskOperator((3, 4, 4), mask)


def test_project_is_consistent_and_changes_nothing_else() -> None:
    x, truth = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    operator = half_mask()
    projected = operator.project(x, operator.H(truth))
    torch.testing.assert_close(projected[..., :2], truth[..., :2])
    assert torch.equal(projected[..., 2:], x[..., 2:])


def test_measure_adds_noise_per_sample() -> None:
    x = torch.zeros(2, 3, 4, 4)
    measurement = Measurement.of(x, half_mask(), torch.tensor([0.0, 0.5]), torch.ones_like(x))
    assert measurement.y[0].abs().max() == 0
    assert torch.equal(measurement.y[1], torch.full((3, 4, 4), 0.5))
    assert measurement.H_pinv_y[1, ..., 2:].abs().max() == 0
    with pytest.raises(ShapeError, match="noise"):
        Measurement.of(x, half_mask(), 0.1)


def test_selecting_and_moving_a_measurement() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    measurement = Measurement.of(x, half_mask()).to("cpu")
    one = measurement.select([1])
    assert one.operator.batch_size == 1
    assert torch.equal(one.y, measurement.y[1:])


def test_conversion_recomputes_what_was_derived() -> None:
    generator = torch.Generator().manual_seed(0)
    for operator in (
        MatrixOperator((1, 4, 4), torch.randn(1, 5, 16, generator=generator)),
        StridedConvolution((1, 4, 4), torch.rand(1, 4, 4, generator=generator), stride=2),
    ):
        operator.H_pinv(torch.zeros(1, *operator.measurement_shape))
        operator.double()
        y = operator.H(torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64))
        torch.testing.assert_close(operator.H(operator.H_pinv(y)), y, rtol=0, atol=1e-13)


def test_an_operator_without_samples_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one sample"):
        MaskOperator((3, 4, 4), torch.zeros(0, 1, 4, 4))
    with pytest.raises(ShapeError, match=r"\(C, H, W\)"):
        MaskOperator((4, 4), torch.zeros(1, 1, 4, 4))
