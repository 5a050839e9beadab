"""What is derived from H alone: adjoint, inverses and norm, and their derivatives."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import LinearOperator, MatrixOperator, Measurement
from invfusion.operators.iterative import conjugate_gradients

SHAPE = (1, 6, 5)


def kernel() -> Tensor:
    k = torch.rand(1, 1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k[..., 1, 1] += 3
    return k / k.sum()


def operator(weights: Tensor) -> LinearOperator:
    return LinearOperator.from_functions(lambda x: F.conv2d(x, weights.to(x.dtype)), image_shape=SHAPE).double()


def small(weights: Tensor) -> LinearOperator:
    return LinearOperator.from_functions(lambda x: F.conv2d(x, weights.to(x.dtype)), image_shape=(1, 4, 3)).double()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(op: LinearOperator) -> Tensor:
    size = torch.Size(op.image_shape).numel()
    basis = torch.eye(size, dtype=torch.float64).view(size, *op.image_shape)
    return op.H(basis).flatten(1).mT


def test_everything_equals_linear_algebra() -> None:
    op = operator(kernel())
    A, y = dense(op), normal(3, *op.measurement_shape)
    torch.testing.assert_close(op.H_adjoint(y).flatten(1), y.flatten(1) @ A)
    torch.testing.assert_close(op.H_pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(A).mT)
    torch.testing.assert_close(op.norm, torch.linalg.matrix_norm(A, 2)[None], rtol=1e-3, atol=0)
    lam = torch.tensor([0.0, 1e-3, 1.0], dtype=torch.float64)
    expected = [
        torch.linalg.solve(A @ A.mT + level * torch.eye(len(A)).double(), v)
        for level, v in zip(lam, y.flatten(1), strict=True)
    ]
    torch.testing.assert_close(op.damped_inverse(y, lam).flatten(1), torch.stack(expected))


def test_a_start_saves_steps_and_changes_nothing() -> None:
    root = normal(9, 9)
    A, b = root @ root.mT + torch.eye(9).double(), normal(2, 9, seed=1)
    expected = torch.linalg.solve(A, b.mT).mT
    for start, most in ((normal(2, 9, seed=2), 30), (expected + 1e-14, 0)):
        found = conjugate_gradients(lambda z: z @ A, b, 1, max_iterations=30, start=start)
        torch.testing.assert_close(found.value, expected)
        assert found.n_iterations <= most


def test_a_rank_that_is_lacking_or_a_measurement_that_cannot_be_is_no_obstacle() -> None:
    """More measurements than pixels, some twice: H_pinv solves least squares, (H H^T)^+ stands in for the inverse."""
    op = LinearOperator.from_functions(
        lambda x: torch.cat([x, 2 * x, x[..., :1, :]], dim=-2), image_shape=(1, 3, 2)
    ).double()
    A, y = dense(op), normal(2, *op.measurement_shape)
    torch.testing.assert_close(op.H_pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(A).mT)
    torch.testing.assert_close(
        op.damped_inverse(y, 0).flatten(1), y.flatten(1) @ torch.linalg.pinv(A @ A.mT, rtol=1e-10)
    )


def test_derivatives_are_those_of_finite_differences() -> None:
    """With respect to the measurement, the damping, and what H itself depends on."""
    weights, y = kernel().requires_grad_(), normal(2, 1, 2, 2).requires_grad_()
    lam = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, v, q: small(w).damped_inverse(v, q), (weights, y, lam), atol=1e-6)
    assert torch.autograd.gradcheck(lambda v: small(kernel()).H_pinv(v), (y,), atol=1e-6)
    assert torch.autograd.gradcheck(lambda w, v: small(w).H_adjoint(v), (weights, y), atol=1e-6)


def test_second_derivatives_by_measurement_and_damping_too() -> None:
    y, lam = normal(1, 1, 2, 2).requires_grad_(), torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda v, q: small(kernel()).damped_inverse(v, q), (y, lam), atol=1e-5)


def test_a_neighbour_changes_nothing_and_not_a_number_stays_one() -> None:
    op, y = operator(kernel()), normal(3, 1, 4, 4)
    lam = torch.tensor([0.01, 5.0, 0.0])
    together = op.damped_inverse(y, lam), op.H_pinv(y)
    for i in range(3):
        torch.testing.assert_close(
            op.damped_inverse(y[i : i + 1], lam[i : i + 1]), together[0][i : i + 1], rtol=1e-9, atol=1e-9
        )
    y[1, 0, 0, 0] = torch.nan
    for value, clean in zip((op.damped_inverse(y, lam), op.H_pinv(y)), together, strict=True):
        assert bool(value[1].isnan().any())
        torch.testing.assert_close(value[[0, 2]], clean[[0, 2]], rtol=1e-9, atol=1e-9)


def test_what_does_not_converge_says_so_with_figures() -> None:
    op = LinearOperator.from_functions(lambda x: x * torch.logspace(0, -7, 30).view(1, 6, 5), image_shape=SHAPE)
    op.max_iterations = 3
    with pytest.warns(RuntimeWarning, match=r"damped inverse of the operator 'function' stopped after 3 .* residual"):
        op.damped_inverse(torch.ones(1, *SHAPE), 1e-9)


def test_no_graph_is_kept_in_vain() -> None:
    op, y = operator(kernel()), normal(1, 1, 4, 4)
    for value in (op.H_adjoint(y), op.H_pinv(y), op.damped_inverse(y, 0.1), op.norm):
        assert not value.requires_grad
    with torch.inference_mode():
        inside = op.H_adjoint(y.clone())
    torch.testing.assert_close(inside.clone(), op.H_adjoint(y))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + 1, "not linear"),
        (lambda x: x.abs(), "not linear"),
        (lambda x: x.sum(), "two measurements"),
        (lambda x: torch.fft.fft2(x), "real floating-point"),
        (lambda x: x.reshape(7), "fails on images"),
        (lambda x: [x], "must return a tensor"),
    ],
    ids=["affine", "modulus", "sum", "complex", "fails", "list"],
)
def test_functions_that_are_no_operators_are_refused(function, message: str) -> None:
    with pytest.raises((OperatorError, ShapeError), match=message):
        LinearOperator.from_functions(function, image_shape=SHAPE)


def test_a_function_cut_from_the_graph_needs_its_adjoint() -> None:
    detached = {"H": lambda x: 2 * x.detach(), "image_shape": SHAPE}
    with pytest.raises(OperatorError, match="its adjoint must be given"):
        LinearOperator.from_functions(**detached).H_adjoint(torch.ones(1, *SHAPE))
    op = LinearOperator.from_functions(**detached, H_adjoint=lambda y: 2 * y)
    torch.testing.assert_close(op.H_pinv(torch.ones(1, *SHAPE)), torch.full((1, *SHAPE), 0.5))


@pytest.mark.parametrize(
    ("lam", "error"),
    [(-1.0, OperatorError), (torch.nan, OperatorError), (torch.ones(3), ShapeError), (torch.ones(2, 1), ShapeError)],
    ids=["negative", "nan", "length", "shape"],
)
def test_bad_damping_is_refused(lam, error: type[Exception]) -> None:
    with pytest.raises(error, match="lam"):
        operator(kernel()).damped_inverse(normal(2, 1, 4, 4), lam)


def test_a_subclass_needs_nothing_but_h() -> None:
    class Flipped(LinearOperator):
        kind = "flipped"

        def H(self, x: Tensor) -> Tensor:
            return x.flip(-1)

    op = Flipped(2, SHAPE, SHAPE)
    x = normal(2, *SHAPE).float()
    torch.testing.assert_close(op.H_pinv(op.H(x)), x)
    torch.testing.assert_close(op.H_adjoint(x), x.flip(-1))


# Measurements check themselves.
def matrix() -> MatrixOperator:
    return MatrixOperator(SHAPE, normal(3, 4, 30).float())


@pytest.mark.parametrize(
    ("y", "sigma_y", "message"),
    [
        (torch.zeros(1, 4), 0.0, "3 samples"),
        (torch.zeros(3, 3), 0.0, "a measurement of shape"),
        (torch.zeros(3, 2, 4), 0.0, "must be"),
        (torch.zeros(3, 4).long(), 0.0, "floating-point"),
        (torch.zeros(3, 4), -0.1, "at least 0"),
        (torch.zeros(3, 4), float("nan"), "at least 0"),
        (torch.zeros(3, 4), torch.tensor([0.1, -0.1, 0.1]), "at least 0"),
        (torch.zeros(3, 4), torch.ones(2), "one per sample"),
        (torch.zeros(3, 4), torch.ones(3, 1), "one per sample"),
        (torch.zeros(3, 4), torch.ones(3, dtype=torch.complex64), "complex"),
    ],
)
def test_a_measurement_that_does_not_fit_is_refused(y: Tensor, sigma_y: float | Tensor, message: str) -> None:
    with pytest.raises((OperatorError, ShapeError), match=message):
        Measurement(y, matrix(), sigma_y)


def test_one_noise_level_stands_for_all() -> None:
    for level in (0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.full((3,), 0.25)):
        assert torch.equal(Measurement(torch.zeros(3, 4), matrix(), level).sigma_y, torch.full((3,), 0.25))
    assert torch.equal(Measurement(torch.zeros(3, 4), matrix()).sigma_y, torch.zeros(3))


def test_functions_of_single_precision_serve_in_double() -> None:
    """A Gaussian prior asks for products in double precision; a kernel of the user's own has none."""
    kernel = torch.ones(1, 1, 3, 3) / 9
    operator = LinearOperator.from_functions(lambda x: F.conv2d(x, kernel, padding=1), image_shape=(1, 6, 7))
    twin = operator.with_tensors({name: t.double() for name, t in operator.tensors().items()})
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert twin.H(x).dtype == twin.H_adjoint(twin.H(x)).dtype == torch.float64
    torch.testing.assert_close(twin.H(x).float(), operator.H(x.float()))


def test_a_module_in_double_precision_serves_there() -> None:
    module = torch.nn.Conv2d(1, 2, 3, bias=False).requires_grad_(False)
    operator = LinearOperator.from_functions(module, image_shape=(1, 6, 7)).double()
    x = torch.ones(1, 1, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(operator.H(x), module(x))
