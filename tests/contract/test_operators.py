"""Every registered operator keeps the contract. A new operator needs an entry in EXAMPLES."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import (
    OPERATORS,
    Bayer,
    Blur,
    CompressedSensing,
    Downsampling,
    Fourier,
    Grayscale,
    Inpainting,
    LinearOperator,
    MaskOperator,
    MatrixOperator,
    Measurement,
    NullOperator,
    PublishedBlur,
    StridedConvolution,
    check_operator,
    compose,
    scaled,
    stack,
)
from invfusion.operators.blur import Boundary
from invfusion.operators.downsampling import Filter

SHAPE = (2, 4, 6)
Make = Callable[[tuple[int, int, int], torch.Generator], LinearOperator]


def well_conditioned(h: int, w: int, generator: torch.Generator, n: int = 3) -> Tensor:
    """Kernels (n, h, w) that sum to one, with half of their weight at one pixel."""
    kernel = torch.rand(n, h, w, generator=generator)
    kernel[:, h // 2, w // 2] += h * w
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)


def masks(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    return (torch.rand(3, 1, *shape[1:], generator=generator) < 0.4).float()


def blur(boundary: str) -> Make:
    return lambda shape, g: Blur(shape, well_conditioned(3, 2, g), boundary=boundary)


def downsampling(filter: str) -> Make:
    return lambda shape, _: Downsampling(shape, 2 if shape == SHAPE else 3, filter=filter, batch_size=3)


def sensing(shape: tuple[int, int, int], generator: torch.Generator, transform: str) -> CompressedSensing:
    """A third of the entries of each sample."""
    signs, order = torch.rand(2, 3, torch.Size(shape).numel(), generator=generator)
    rank = order.argsort(dim=1).argsort(dim=1)
    return CompressedSensing(shape, 1 - 2 * (signs < 0.5).float(), rank < rank.shape[1] // 3, transform)


def hadamard(shape: tuple[int, int, int], generator: torch.Generator) -> CompressedSensing:
    """The only one that cannot have odd sides."""
    return sensing((1, 8, 16) if shape[0] == 1 else (2, 4, 8), generator, "hadamard")


# kind -> operators of three samples for images of a shape.
EXAMPLES: dict[str, dict[str, Make]] = {
    "mask": {"": lambda shape, g: MaskOperator(shape, masks(shape, g))},
    "inpainting": {"": lambda shape, g: Inpainting(shape, masks(shape, g))},
    "strided_convolution": {
        "": lambda shape, g: StridedConvolution(
            shape, torch.rand(3, *shape[1:], generator=g) / 12, stride=2 if shape == SHAPE else 3
        )
    },
    "matrix": {
        "": lambda shape, g: MatrixOperator(shape, torch.randn(3, 9, torch.Size(shape).numel(), generator=g) / 7)
    },
    "null": {"": lambda shape, _: NullOperator(shape, torch.zeros(3, 0))},
    "blur": {boundary: blur(boundary) for boundary in get_args(Boundary)},
    "grayscale": {"": lambda shape, _: Grayscale(shape, batch_size=3)},
    "bayer": {"": lambda shape, _: Bayer((3, *shape[1:]), "GRBG", batch_size=3)},
    "fourier": {"": lambda shape, g: Fourier(shape, masks(shape, g))},
    "compressed_sensing": {"dct": lambda shape, g: sensing(shape, g, "dct"), "hadamard": hadamard},
    "composition": {
        "": lambda shape, g: compose(Grayscale((shape[0], *shape[1:])), Inpainting(shape, masks(shape, g)))
    },
    "stack": {"": lambda shape, g: stack(Inpainting(shape, masks(shape, g)), downsampling("area")(shape, g))},
    "scaled": {
        "exact": lambda shape, g: scaled(Fourier(shape, masks(shape, g)), -1.5),
        "iterative": lambda shape, g: scaled(blur("valid")(shape, g), 0.5),
    },
    # A stride that divides the shape's sides.
    "published_blur": {
        "": lambda shape, g: PublishedBlur(shape, well_conditioned(3, 2, g), stride=2 if shape == SHAPE else 3)
    },
    "downsampling": {filter: downsampling(filter) for filter in get_args(Filter)},
}
CASES = [(kind, name) for kind, makes in EXAMPLES.items() for name in makes]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(filter(None, case)))
def make(request: pytest.FixtureRequest) -> Make:
    kind, name = request.param
    return EXAMPLES[kind][name]


@pytest.fixture
def operator(make: Make) -> LinearOperator:
    return make(SHAPE, torch.Generator().manual_seed(0))


def test_every_registered_operator_has_an_example() -> None:
    assert set(EXAMPLES) == set(OPERATORS)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 9, 15), torch.float32), ((3, 15, 9), torch.float64)], ids=["gray32", "colour64"]
)
def test_keeps_the_contract(make: Make, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    operator = make(shape, torch.Generator().manual_seed(1)).to(dtype)
    report = check_operator(operator, tolerance=1e-4 if dtype == torch.float32 else 1e-9)
    assert report.passed, str(report)


def dense(operator: LinearOperator) -> Tensor:
    """(B, M, D): the operator's matrix, column by column."""
    shape = operator.image_shape
    size = torch.Size(shape).numel()
    basis = torch.eye(size, dtype=operator.dtype).view(size, *shape)
    return operator.H(basis.expand(operator.batch_size, *basis.shape)).flatten(2).mT


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
        # Power iteration approaches it from below.
        rtol = 1e-7 if operator.tier == "exact" else 1e-3
        torch.testing.assert_close(operator.norm, torch.linalg.matrix_norm(matrix, 2), rtol=rtol, atol=1e-12)


def test_wrong_shapes_are_refused(operator: LinearOperator) -> None:
    with pytest.raises(ShapeError, match=operator.kind):
        operator.H(torch.zeros(3, 2, 6, 5))
    with pytest.raises(ShapeError, match="3 samples"):
        operator.H(torch.zeros(2, *operator.image_shape))
    with pytest.raises(ShapeError):
        operator.H_pinv(torch.zeros(3, *operator.measurement_shape[:-1], operator.measurement_shape[-1] + 1))


def test_can_be_used_for_training_after_inference_mode(operator: LinearOperator) -> None:
    with torch.inference_mode():
        operator.H_pinv(operator.H(torch.zeros(3, *operator.image_shape)))
    x = torch.ones(3, *operator.image_shape, requires_grad=True)
    operator.H_pinv(operator.H(x)).sum().backward()
    assert x.grad is not None


def test_select_takes_slices_and_lists(operator: LinearOperator) -> None:
    x = torch.ones(3, *operator.image_shape)
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
    if not operator.has_spectrum:
        pytest.skip("it does not know its singular values")
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


@pytest.mark.parametrize("lam", [0.0, 1e-3, 0.5])
def test_damped_inverse_is_that_of_the_dense_matrix(operator: LinearOperator, lam: float) -> None:
    operator = operator.double()
    A = dense(operator)
    y = torch.randn(A.shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram = A @ A.mT + lam * torch.eye(A.shape[1], dtype=torch.float64)
    expected = (torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ y[..., None])[..., 0]
    stack = torch.stack([y, 2 * y], dim=1).view(3, 2, *operator.measurement_shape)
    actual = operator.damped_inverse(stack, lam)[:, 1].flatten(1)
    torch.testing.assert_close(actual, 2 * expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        operator.damped_inverse(stack[:, 0], torch.tensor([lam, 0.2, lam]))[::2].flatten(1),
        expected[::2],
        rtol=1e-7,
        atol=1e-7,
    )


def test_a_float64_measurement_meets_a_float32_operator(operator: LinearOperator) -> None:
    y = torch.ones(3, *operator.measurement_shape, dtype=torch.float64)
    assert operator.damped_inverse(y, torch.ones(3)).dtype == torch.float64
    assert operator.H_pinv(y).dtype == torch.float64
    torch.testing.assert_close(operator.damped_inverse(y, 0.5).float(), operator.damped_inverse(y.float(), 0.5))


def test_one_sample_serves_a_batch_and_can_be_expanded(operator: LinearOperator) -> None:
    one = operator.select([1])
    x = torch.randn(4, *operator.image_shape, generator=torch.Generator().manual_seed(0))
    y = one.H(x)
    torch.testing.assert_close(y[2:3], one.H(x[2:3]))
    assert one.expand(4).batch_size == 4
    for name in ("H_pinv", "H_adjoint"):
        torch.testing.assert_close(getattr(one, name)(y), getattr(one.expand(4), name)(y))
    assert Measurement(y, one).operator.batch_size == 4
    with pytest.raises(ShapeError, match="must have one"):
        operator.expand(4)


def test_numbers_of_the_wrong_kind_are_refused(operator: LinearOperator) -> None:
    for dtype in (torch.long, torch.uint8, torch.bool, torch.complex64):
        with pytest.raises(OperatorError, match="floating-point"):
            operator.H(torch.zeros(3, *operator.image_shape, dtype=dtype))


def test_select_takes_masks_of_bools_and_refuses_what_is_not_there(operator: LinearOperator) -> None:
    x = torch.ones(3, *operator.image_shape)
    chosen = torch.tensor([False, True, True])
    torch.testing.assert_close(operator.select(chosen).H(x[chosen]), operator.H(x)[chosen])
    for bad in (torch.tensor([True, False]), [3], [], [0.5], torch.tensor([False] * 3)):
        with pytest.raises(ShapeError, match="samples"):
            operator.select(bad)
