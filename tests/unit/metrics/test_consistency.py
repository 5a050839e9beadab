import torch

from invfusion.metrics import METRICS, Restorations, squared_residual
from invfusion.operators import MatrixOperator, Measurement, NullOperator


def restored(x: torch.Tensor, measurement: Measurement) -> Restorations:
    n_measured = torch.full((len(x),), measurement.y[0].numel())
    return Restorations(images=x, residual=squared_residual(x, measurement), n_measured=n_measured)


def test_by_hand() -> None:
    matrix = torch.zeros(1, 2, 3)
    matrix[0, 0, 0] = matrix[0, 1, 2] = 1.0
    operator = MatrixOperator((3, 1, 1), matrix)
    measurement = Measurement(torch.tensor([[1.0, 2.0]]), operator, torch.zeros(1))
    x = torch.tensor([2.0, 9.0, -1.0]).view(1, 3, 1, 1)
    assert METRICS["consistency_sse"].values(restored(x, measurement)).tolist() == [1 + 9]
    assert METRICS["consistency_mse"].values(restored(x, measurement)).tolist() == [5]


def test_nothing_measured_is_consistent() -> None:
    operator = NullOperator((3, 2, 2), torch.zeros(2, 0))
    measurement = Measurement(torch.zeros(2, 0), operator, torch.zeros(2))
    assert METRICS["consistency_mse"].values(restored(torch.ones(2, 3, 2, 2), measurement)).tolist() == [0, 0]
