"""Operators as data: a spec is {kind, image_shape, attributes, tensors}, and travels as JSON without any pickle."""

import base64
import binascii
import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invfusion.errors import OperatorError
from invfusion.operators.base import LinearOperator
from invfusion.operators.blur import Blur
from invfusion.operators.convolution import StridedConvolution
from invfusion.operators.downsampling import Downsampling
from invfusion.operators.inpainting import Inpainting
from invfusion.operators.masks import MaskOperator
from invfusion.operators.matrix import MatrixOperator
from invfusion.operators.null import NullOperator

OPERATORS: dict[str, type[LinearOperator]] = {
    operator.kind: operator
    for operator in (MaskOperator, StridedConvolution, MatrixOperator, NullOperator, Blur, Downsampling, Inpainting)
}

# Bounds on what a stranger may hand in: bytes of all tensors, samples, and numbers per image.
MAX_BYTES = 2**29
MAX_SAMPLES = 2**16
MAX_IMAGE_SIZE = 2**24

SPEC_KEYS = ("kind", "image_shape", "attributes", "tensors")
DTYPES: dict[str, tuple[torch.dtype, str]] = {
    "float16": (torch.float16, "<f2"),
    "float32": (torch.float32, "<f4"),
    "float64": (torch.float64, "<f8"),
}


def operator_from_spec(spec: Mapping[str, Any]) -> LinearOperator:
    """Build the operator that `to_spec` described; raises `OperatorError` or `ShapeError` on every bad input."""
    _check_keys(spec)
    operator_type = _operator_type(spec["kind"])
    shape = _checked_shape(spec["image_shape"], "image_shape", MAX_IMAGE_SIZE)
    tensors, attributes = spec["tensors"], spec["attributes"]
    if len(shape) != 3 or min(shape) < 1:
        raise OperatorError(f"image_shape must be three positive whole numbers (C, H, W), got {list(shape)}")
    if not isinstance(attributes, Mapping):
        raise OperatorError(f"the attributes of an operator must be a mapping, got {type(attributes).__name__}")
    _check_tensors(tensors)
    operator = operator_type.from_tensors(shape, dict(tensors), dict(attributes))
    operator.check_values()
    return operator


def spec_to_json(spec: Mapping[str, Any]) -> str:
    """The spec as JSON text; each tensor as {dtype, shape, data in base64 of little-endian numbers}."""
    _check_keys(spec)
    _check_tensors(spec["tensors"])
    tensors = {name: _encode(name, tensor) for name, tensor in spec["tensors"].items()}
    return json.dumps({**spec, "tensors": tensors})


def spec_from_json(text: str) -> dict[str, Any]:
    """The spec that `spec_to_json` wrote; raises `OperatorError` on malformed or oversized text."""
    if len(text) > 2 * MAX_BYTES:
        raise OperatorError(f"an operator spec may have at most {2 * MAX_BYTES} characters, got {len(text)}")
    try:
        spec = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise OperatorError(f"the operator spec is not valid JSON: {error}") from error
    _check_keys(spec)
    if not isinstance(spec["tensors"], dict):
        raise OperatorError("the tensors of an operator spec must be a mapping from name to {dtype, shape, data}")
    return {**spec, "tensors": {name: _decode(name, value) for name, value in spec["tensors"].items()}}


def _check_keys(spec: Any) -> None:
    if not isinstance(spec, Mapping) or set(spec) != set(SPEC_KEYS):
        got = sorted(map(str, spec)) if isinstance(spec, Mapping) else type(spec).__name__
        raise OperatorError(f"an operator spec must have exactly the keys {list(SPEC_KEYS)}, got {got}")


def _operator_type(kind: Any) -> type[LinearOperator]:
    if isinstance(kind, str) and kind in OPERATORS:
        return OPERATORS[kind]
    nearest = difflib.get_close_matches(str(kind), OPERATORS, n=1, cutoff=0.0)[0]
    raise OperatorError(
        f"unknown operator kind {str(kind)[:80]!r}: did you mean '{nearest}'? Valid kinds are {', '.join(OPERATORS)}"
    )


def _checked_shape(shape: Any, name: str, max_size: int) -> tuple[int, ...]:
    whole = isinstance(shape, list | tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) > 8 or math.prod(shape) > max_size:
        raise OperatorError(
            f"{name} must be a list of whole numbers of product at most {max_size}, got {str(shape)[:80]}"
        )
    return tuple(shape)


def _check_tensors(tensors: Any) -> None:
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) and t.ndim > 0 for t in tensors.values()):
        raise OperatorError("the tensors of an operator must be a mapping from name to a tensor with a batch axis")
    if any(not t.is_floating_point() for t in tensors.values()):
        raise OperatorError("the tensors of an operator must hold real floating-point numbers")
    samples = max((len(t) for t in tensors.values()), default=0)
    size = sum(t.nbytes for t in tensors.values())
    if samples > MAX_SAMPLES or size > MAX_BYTES:
        raise OperatorError(
            f"an operator spec may hold at most {MAX_SAMPLES} samples and {MAX_BYTES} bytes of tensors, "
            f"got {samples} samples and {size} bytes; split it"
        )


def _encode(name: str, tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise OperatorError(f"tensor '{name}' is {dtype}; an operator spec carries only {', '.join(DTYPES)}")
    raw = tensor.detach().cpu().numpy().astype(DTYPES[dtype][1]).tobytes()
    return {"dtype": dtype, "shape": list(tensor.shape), "data": base64.b64encode(raw).decode("ascii")}


def _decode(name: str, value: Any) -> Tensor:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data"}:
        raise OperatorError(f"tensor '{name}' must be a mapping with the keys dtype, shape and data")
    if value["dtype"] not in list(DTYPES):
        raise OperatorError(f"tensor '{name}' has dtype {value['dtype']!r}; valid are {', '.join(DTYPES)}")
    dtype, layout = DTYPES[value["dtype"]]
    shape = _checked_shape(value["shape"], f"the shape of tensor '{name}'", MAX_BYTES // dtype.itemsize)
    try:
        raw = base64.b64decode(value["data"], validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise OperatorError(f"the data of tensor '{name}' is not valid base64: {error}") from error
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise OperatorError(f"tensor '{name}' of shape {list(shape)} needs {expected} bytes, got {len(raw)}")
    array = np.frombuffer(raw, dtype=layout).astype(layout[1:], copy=True)
    return torch.from_numpy(array).reshape(shape)
