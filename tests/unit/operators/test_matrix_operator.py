import pytest
import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators import MatrixOperator, check_operator
from invfusion.operators.matrix import pseudo_inverse


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_exact(matrix: Tensor) -> None:
    torch.testing.assert_close(pseudo_inverse(matrix), torch.linalg.pinv(matrix), rtol=1e-9, atol=1e-9)


def test_padding_with_zero_rows_is_exact() -> None:
    matrix = normal(20, 12, 48)
    for i in range(20):
        matrix[i, i % 12 + 1 :] = 0
    assert_exact(matrix)
    assert pseudo_inverse(matrix)[0, :, 1:].abs().max() == 0


def test_zero_rows_may_stand_anywhere() -> None:
    matrix = normal(2, 6, 20)
    matrix[:, [0, 3]] = 0
    assert_exact(matrix)


def test_dependent_rows_are_exact() -> None:
    matrix = normal(3, 6, 20)
    matrix[0, 1] = 2 * matrix[0, 0]
    matrix[1, 5] = matrix[1, 0] + matrix[1, 1]
    assert_exact(matrix)


def test_more_rows_than_pixels_are_exact() -> None:
    assert_exact(normal(2, 20, 8))


def test_the_zero_matrix_has_the_zero_inverse() -> None:
    assert pseudo_inverse(torch.zeros(1, 3, 4)).abs().max() == 0


def test_nearly_dependent_rows_keep_the_identities_in_float64() -> None:
    matrix = normal(1, 4, 12)
    matrix[0, 1] = matrix[0, 0] + 1e-4 * matrix[0, 1]
    report = check_operator(MatrixOperator((3, 2, 2), matrix))
    assert report.passed, str(report)


def test_unfit_columns_are_refused() -> None:
    with pytest.raises(ShapeError, match="needs 12 columns"):
        MatrixOperator((3, 2, 2), torch.zeros(1, 4, 10))
    with pytest.raises(ShapeError, match="must be"):
        MatrixOperator((3, 2, 2), torch.zeros(4, 12))
