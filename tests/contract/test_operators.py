"""Every registered operator keeps the contract. A new operator needs one entry in EXAMPLES."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invfusion.errors import ShapeError
from invfusion.operators import OPERATORS, LinearOperator, check_operator
from invfusion.operators.convolution import StridedConvolution
from invfusion.operators.masks import MaskOperator
from invfusion.operators.matrix import MatrixOperator
from invfusion.operators.null import NullOperator

SHAPE = (2, 4, 6)
EXAMPLES: dict[str, Callable[[torch.Generator], LinearOperator]] = {
    "mask": lambda g: MaskOperator(SHAPE, (torch.rand(3, 1, 4, 6, generator=g) < 0.4).float()),
    "strided_convolution": lambda g: StridedConvolution(SHAPE, torch.rand(3, 4, 6, generator=g) / 12, stride=2),
    "matrix": lambda g: MatrixOperator(SHAPE, torch.randn(3, 9, 48, generator=g) / 7),
    "null": lambda _: NullOperator(SHAPE, torch.zeros(3, 0)),
}


@pytest.fixture(params=sorted(OPERATORS))
def operator(request: pytest.FixtureRequest) -> LinearOperator:
    assert request.param in EXAMPLES, f"add an example of operator '{request.param}' to EXAMPLES"
    return EXAMPLES[request.param](torch.Generator().manual_seed(0))


def dense(operator: LinearOperator) -> Tensor:
    """(B, M, D): the operator's matrix, column by column."""
    size = torch.Size(SHAPE).numel()
    basis = torch.eye(size, dtype=operator.dtype).view(size, *SHAPE)
    return operator.H(basis.expand(operator.batch_size, *basis.shape)).flatten(2).mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_contract(operator: LinearOperator, dtype: torch.dtype) -> None:
    report = check_operator(operator.to(dtype))
    assert report.passed, str(report)


def test_pinv_is_that_of_the_dense_matrix(operator: LinearOperator) -> None:
    operator = operator.double()
    matrix = dense(operator)
    y = torch.randn(3, *operator.measurement_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.pinv(matrix, rtol=1e-9) @ y.reshape(3, -1, 1)
    torch.testing.assert_close(operator.H_pinv(y).reshape(3, -1, 1), expected, rtol=0, atol=1e-9)


def test_norm_and_adjoint_are_those_of_the_dense_matrix(operator: LinearOperator) -> None:
    operator = operator.double()
    matrix = dense(operator)
    y = torch.ones(3, *operator.measurement_shape, dtype=torch.float64)
    torch.testing.assert_close(operator.H_adjoint(y).flatten(1), (matrix.mT @ y.reshape(3, -1, 1))[..., 0])
    if matrix.shape[1]:
        torch.testing.assert_close(operator.norm, torch.linalg.matrix_norm(matrix, 2))


def test_wrong_shapes_are_refused(operator: LinearOperator) -> None:
    with pytest.raises(ShapeError, match=operator.kind):
        operator.H(torch.zeros(3, 2, 6, 4))
    with pytest.raises(ShapeError, match="3 samples"):
        operator.H(torch.zeros(2, *SHAPE))
    with pytest.raises(ShapeError):
        operator.H_pinv(torch.zeros(3, *operator.measurement_shape[:-1], operator.measurement_shape[-1] + 1))


def test_can_be_used_for_training_after_inference_mode(operator: LinearOperator) -> None:
    with torch.inference_mode():
        operator.H_pinv(operator.H(torch.zeros(3, *SHAPE)))
    x = torch.ones(3, *SHAPE, requires_grad=True)
    operator.H_pinv(operator.H(x)).sum().backward()
    assert x.grad is not None


def test_select_takes_slices_and_lists(operator: LinearOperator) -> None:
    x = torch.ones(3, *SHAPE)
    torch.testing.assert_close(operator.select(slice(1, 3)).H(x[1:]), operator.H(x)[1:])
    torch.testing.assert_close(operator.select([2, 0]).H(x[:2]), operator.H(x)[[2, 0]])


def test_operators_of_other_images_do_not_join(operator: LinearOperator) -> None:
    other = NullOperator((2, 4, 4), torch.zeros(1, 0))
    with pytest.raises(ShapeError, match="cannot join"):
        type(operator).cat([operator, other])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectral_filters_by_the_singular_values_of_the_dense_matrix(
    operator: LinearOperator, dtype: torch.dtype
) -> None:
    operator = operator.to(dtype)
    A = dense(operator)
    u, q, _ = torch.linalg.svd(A.double(), full_matrices=False)
    y = torch.randn(A.shape[:2], generator=torch.Generator().manual_seed(1), dtype=dtype)

    def gain(q: Tensor) -> Tensor:
        return 1 / (1 + q**2)

    seen = q > 1e-6 * q.amax(dim=1, keepdim=True) if q.numel() else q > 0
    expected = (u * (gain(q) * seen)[:, None]) @ (u.mT @ y.double()[..., None])
    actual = operator.spectral(y.view(3, *operator.measurement_shape), gain).flatten(1)
    torch.testing.assert_close(actual.double(), expected[..., 0], rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-8)
    stack = torch.stack([y, 2 * y], dim=1).view(3, 2, *operator.measurement_shape)
    torch.testing.assert_close(operator.spectral(stack, gain)[:, 1].flatten(1), 2 * actual)
