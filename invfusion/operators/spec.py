"""Operators as data: a spec is {kind, image_shape, attributes, tensors}, and travels as JSON without any pickle.

That of a user's operator names its plug-in too.
"""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from invfusion.errors import OperatorError
from invfusion.operators.base import LinearOperator
from invfusion.operators.registry import operator_type

# Bounds on what a stranger may hand in: bytes of all tensors, samples, and numbers per image.
MAX_BYTES = 2**29
MAX_SAMPLES = 2**16
MAX_IMAGE_SIZE = 2**24

SPEC_KEYS = ("kind", "image_shape", "attributes", "tensors")
DTYPES = (torch.float16, torch.float32, torch.float64)


def operator_from_spec(spec: Mapping[str, Any]) -> LinearOperator:
    """Build the operator that `to_spec` described; raises `OperatorError` or `ShapeError` on every bad input."""
    _check_keys(spec)
    plugin = spec.get("plugin")
    chosen = operator_type(spec["kind"], None if plugin is None else str(plugin)[:80])
    shape = _checked_shape(spec["image_shape"], "image_shape", MAX_IMAGE_SIZE)
    tensors, attributes = spec["tensors"], spec["attributes"]
    if len(shape) != 3 or min(shape) < 1:
        raise OperatorError(f"image_shape must be three positive whole numbers (C, H, W), got {list(shape)}")
    if not isinstance(attributes, Mapping):
        raise OperatorError(f"the attributes of an operator must be a mapping, got {type(attributes).__name__}")
    _check_tensors(tensors)
    operator = chosen.from_tensors(shape, dict(tensors), dict(attributes))
    operator.check_values()
    return operator


def spec_to_json(spec: Mapping[str, Any]) -> str:
    """The spec as JSON text; the tensors as the bytes of a safetensors file, in base64."""
    _check_keys(spec)
    _check_tensors(spec["tensors"])
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in spec["tensors"].items()}
    return json.dumps({**spec, "tensors": base64.b64encode(save(tensors)).decode("ascii")})


def spec_from_json(text: str) -> dict[str, Any]:
    """The spec that `spec_to_json` wrote, or one typed by hand, whose tensors are {name: nested lists of numbers}.

    Raises:
        OperatorError: the text is malformed or too large.
    """
    if len(text) > 2 * MAX_BYTES:
        raise OperatorError(f"an operator spec may have at most {2 * MAX_BYTES} characters, got {len(text)}")
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"the operator spec is not valid JSON: {error}") from error
    _check_keys(spec)
    tensors = spec["tensors"]
    if isinstance(tensors, dict):
        return {**spec, "tensors": {name: _from_lists(name, value) for name, value in tensors.items()}}
    if not isinstance(tensors, str):
        raise OperatorError("the tensors of an operator spec must be {name: nested lists} or safetensors in base64")
    return {**spec, "tensors": _from_safetensors(tensors)}


def _check_keys(spec: Any) -> None:
    if not isinstance(spec, Mapping) or set(spec) - {"plugin"} != set(SPEC_KEYS):
        got = sorted(map(str, spec)) if isinstance(spec, Mapping) else type(spec).__name__
        raise OperatorError(f"an operator spec must have exactly the keys {list(SPEC_KEYS)}, got {got}")


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
    if any(t.dtype not in DTYPES for t in tensors.values()):
        raise OperatorError("the tensors of an operator must hold floating-point numbers of 16, 32 or 64 bits")
    samples = max((len(t) for t in tensors.values()), default=0)
    size = sum(t.nbytes for t in tensors.values())
    if samples > MAX_SAMPLES or size > MAX_BYTES:
        raise OperatorError(
            f"an operator spec may hold at most {MAX_SAMPLES} samples and {MAX_BYTES} bytes of tensors, "
            f"got {samples} samples and {size} bytes; split it"
        )


def _from_lists(name: str, value: Any) -> Tensor:
    try:
        return torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise OperatorError(f"tensor '{name[:80]}' must be nested lists of numbers of equal lengths: {error}") from None


def _from_safetensors(text: str) -> dict[str, Tensor]:
    try:
        return load(base64.b64decode(text, validate=True))
    except (ValueError, SafetensorError, KeyError) as error:
        raise OperatorError(f"the tensors are not a safetensors file in base64: {error}") from error
