"""Operators and measurements, given anything: a result of finite numbers of the promised shape, or our error.

Nothing is lost in silence: no imaginary part, no batch that was broadcast, no noise level below zero.
"""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fault_report import IS_FULL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from invfusion.errors import InvFusionError
from invfusion.operators import (
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
    PublishedBlur,
    StridedConvolution,
    compose,
    scaled,
    stack,
)

CASES = 10_000 if IS_FULL else 150
FUZZ = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
DTYPES = [
    torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
    torch.bool, torch.complex64,
]  # fmt: skip
SIDES = st.integers(0, 7)


@st.composite
def tensors(draw: Any, shape: tuple[int, ...]) -> Tensor:
    """Mostly of this shape; of any type; of plain numbers, zeros and ones, duplicates, or what is none."""
    change = draw(st.integers(0, 9))
    if change == 0:
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
    elif change == 1 and shape:
        at = draw(st.integers(0, len(shape) - 1))
        shape = (*shape[:at], draw(st.integers(0, 5)), *shape[at + 1 :])
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dtype = draw(st.sampled_from(DTYPES))
    content = draw(st.sampled_from(["normal", "normal", "binary", "binary", "ones", "zeros", "255", "nan", "inf"]))
    values = torch.randn(shape, generator=generator)
    if content == "binary":
        values = (values > 0).float()
    elif content != "normal":
        values = torch.full(
            shape, {"ones": 1.0, "zeros": 0.0, "255": 255.0, "nan": torch.nan, "inf": torch.inf}[content]
        )
    return values.nan_to_num(0, 1, 0).to(dtype) if not dtype.is_floating_point else values.to(dtype)


@st.composite
def operators(draw: Any) -> LinearOperator:
    """Any operator of ours, with whatever it is given."""
    b, c = draw(st.integers(0, 3)), draw(st.sampled_from([1, 3, 3, 2, 0]))
    shape = (c, draw(SIDES), draw(SIDES))
    size = c * shape[1] * shape[2]
    plane = (b, 1, *shape[1:])
    factor = draw(st.sampled_from([1, 2, 3, 0, -1, 2.0, "2", None]))
    makes: dict[str, Callable[[], LinearOperator]] = {
        "mask": lambda: MaskOperator(shape, draw(tensors(plane))),
        "inpainting": lambda: Inpainting(shape, draw(tensors(draw(st.sampled_from([plane, shape[1:]]))))),
        "matrix": lambda: MatrixOperator(shape, draw(tensors((b, draw(st.integers(0, 6)), size)))),
        "strided": lambda: StridedConvolution(shape, draw(tensors((b, *shape[1:]))), factor),
        "blur": lambda: Blur(
            shape,
            draw(tensors(draw(st.sampled_from([(3, 2), (b, 2, 3), (b, c, 3, 3), (1, 1)])))),
            boundary=draw(st.sampled_from(["valid", "circular", "reflect", "replicate", "constant", "same", 3])),
        ),
        "published": lambda: PublishedBlur(shape, draw(tensors(draw(st.sampled_from([(3, 2), (b, 1, 2, 3)])))), factor),
        "downsampling": lambda: Downsampling(shape, factor, draw(st.sampled_from(["bicubic", "area", "cubic", 1])), 1),
        "grayscale": lambda: Grayscale(shape, draw(st.sampled_from([None, [1.0] * c, [0.0] * c, "abc", [1j] * c]))),
        "bayer": lambda: Bayer(shape, draw(st.sampled_from(["RGGB", "RGB", 4, "XXXX", "RRRR"]))),
        "fourier": lambda: Fourier(shape, draw(tensors(plane))),
        "sensing": lambda: CompressedSensing(
            shape, 2 * draw(tensors((b, size))).real.float() - 1, draw(tensors((b, size))),
            draw(st.sampled_from(["dct", "hadamard", "fft"])),
        ),
        "composed": lambda: compose(draw(operators()), draw(operators())),
        "stacked": lambda: stack(draw(operators()), draw(operators())),
        "scaled": lambda: scaled(draw(operators()), draw(st.sampled_from([2, -0.5, 0, float("nan"), "2", True]))),
    }  # fmt: skip
    return makes[draw(st.sampled_from(sorted(makes)))]()


def assert_sound(value: Tensor, shape: tuple[int, ...], inputs: Tensor) -> None:
    assert tuple(value.shape) == shape
    assert value.dtype == inputs.dtype
    # Half precision overflows beyond 65504, as it may.
    if inputs.dtype != torch.float16 and bool(inputs.isfinite().all()):
        assert bool(value.isfinite().all())


@FUZZ
@given(st.data())
def test_an_operator_of_anything_works_or_is_refused(data: st.DataObject) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            operator = data.draw(operators())
            b = operator.batch_size
            x = data.draw(tensors((b, *operator.image_shape)))
            y = operator.H(x)
        except InvFusionError:
            return
        assert x.is_floating_point()
        assert_sound(y, (len(x), *x.shape[1 : x.ndim - 3], *operator.measurement_shape), x)
        back = operator.H_adjoint(y)
        assert_sound(back, tuple(x.shape), y)
        lam = data.draw(st.sampled_from([0.5, 1, 0.0, -1.0, float("nan"), torch.ones(b), torch.ones(b + 1), 1e-3]))
        try:
            assert_sound(operator.damped_inverse(y, lam), tuple(y.shape), y)
        except InvFusionError:
            assert not (isinstance(lam, float) and lam >= 0)
        picked = data.draw(
            st.sampled_from([[0], [b], [], [True] * b, [False] * b, slice(0, 1), torch.arange(b) < 1, [0.0]])
        )
        try:
            one = operator.select(picked)
        except InvFusionError:
            return
        assert 1 <= one.batch_size <= b


@FUZZ
@given(st.data())
def test_a_measurement_of_anything_fits_or_is_refused(data: st.DataObject) -> None:
    operator = MatrixOperator((1, 2, 3), torch.ones(data.draw(st.sampled_from([1, 3])), 4, 6))
    y = data.draw(tensors((data.draw(st.sampled_from([1, 2, 3])), 4)))
    sigma_y = data.draw(
        st.one_of(st.floats(), st.integers(-2, 2), tensors((3,)), tensors((1,)), tensors(()), st.sampled_from([True]))
    )
    try:
        measurement = Measurement(y, operator, sigma_y)
    except InvFusionError:
        return
    b = len(y)
    assert y.is_floating_point()
    assert tuple(measurement.y.shape) == (b, 4)
    assert measurement.operator.batch_size == b
    assert operator.batch_size in (1, b)
    assert tuple(measurement.sigma_y.shape) == (b,)
    assert bool((measurement.sigma_y >= 0).all())
    assert bool(measurement.sigma_y.isfinite().all())
    assert measurement.select([b - 1]).y.shape == (1, 4)


@pytest.mark.full_size
def test_the_cases_are_noted(note: Callable[..., None]) -> None:
    note("operators and measurements of random shapes, types and values", 2 * CASES)
