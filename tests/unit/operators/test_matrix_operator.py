import pytest
import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import MaskOperator, MatrixOperator, check_operator
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


def test_rank_deficient_matrices_of_exact_numbers_do_not_take_the_batch_along() -> None:
    """Factors with zeros on their diagonal: duplicate rows, a + b, more rows than pixels, of 0 and 1."""
    rows = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 2], [1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]])
    sound = normal(1, 6, 4)
    sound[:, 4:] = 0
    assert_exact(torch.cat([rows[None].double(), sound, torch.ones(1, 6, 4).double()]))
    for seed in range(20):
        draws = torch.randint(0, 2, (4, 6, 16), generator=torch.Generator().manual_seed(seed))
        assert_exact(draws.double())


def test_definitions_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least one row"):
        MatrixOperator((1, 2, 2), torch.zeros(1, 0, 4))
    with pytest.raises(OperatorError, match="complex"):
        MatrixOperator((1, 2, 2), torch.zeros(1, 3, 4, dtype=torch.complex64))
    with pytest.raises(OperatorError, match="infinite or not-a-number"):
        MatrixOperator((1, 2, 2), torch.full((1, 3, 4), torch.nan))
    whole = MatrixOperator((1, 2, 2), torch.ones(1, 1, 4, dtype=torch.long))
    torch.testing.assert_close(whole.H(torch.full((1, 1, 2, 2), 0.25)), torch.ones(1, 1))
    for bad in (255 * torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5)):
        with pytest.raises(OperatorError, match="only 0 and 1"):
            MaskOperator((3, 2, 2), bad)
    assert torch.equal(MaskOperator((3, 2, 2), torch.ones(1, 1, 2, 2, dtype=torch.bool)).mask, torch.ones(1, 1, 2, 2))
