import base64
import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from invfusion.errors import InvFusionError, OperatorError, ShapeError
from invfusion.operators import MaskOperator, NullOperator, operator_from_spec, spec, spec_from_json, spec_to_json
from invfusion.operators.combined import Composition, Stack


def mask_spec(**changes: Any) -> dict[str, Any]:
    return {**MaskOperator((3, 2, 2), torch.ones(1, 1, 2, 2)).to_spec(), **changes}


def as_json(tensors: Any) -> str:
    return json.dumps(mask_spec(tensors=tensors))


def in_base64(tensors: dict[str, torch.Tensor]) -> str:
    return base64.b64encode(save(tensors)).decode()


def test_json_keeps_every_bit() -> None:
    values = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.float32, torch.float64):
        text = spec_to_json(
            {"kind": "matrix", "image_shape": [3, 2, 2], "attributes": {}, "tensors": {"matrix": values.to(dtype)}}
        )
        assert torch.equal(spec_from_json(text)["tensors"]["matrix"], values.to(dtype))


def test_tensors_may_be_typed_as_lists() -> None:
    operator = operator_from_spec(spec_from_json(as_json({"mask": [[[[1, 0], [0, 1]]]]})))
    assert operator.H(torch.ones(1, 3, 2, 2)).sum() == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.complex64])
def test_tensors_of_other_kinds_of_numbers_are_refused(dtype: torch.dtype) -> None:
    text = as_json(in_base64({"mask": torch.ones(1, 1, 2, 2).to(dtype)}))
    with pytest.raises(OperatorError, match="floating-point numbers of 16, 32 or 64 bits"):
        operator_from_spec(spec_from_json(text))


def test_an_operator_without_numbers_keeps_its_batch_size() -> None:
    null = NullOperator((3, 2, 2), torch.zeros(5, 0))
    assert operator_from_spec(spec_from_json(spec_to_json(null.to_spec()))).batch_size == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (mask_spec(kind="maks"), "did you mean 'mask'"),
        (mask_spec(kind=3), "unknown operator kind"),
        (mask_spec(image_shape=[3, 2]), "three positive"),
        (mask_spec(image_shape=[3, 0, 2]), "three positive"),
        (mask_spec(image_shape=[3, 2.0, 2]), "whole numbers"),
        (mask_spec(image_shape=[3, 10**6, 10**6]), "at most"),
        (mask_spec(attributes=[]), "mapping"),
        (mask_spec(attributes={"stride": 2}), "attributes"),
        (mask_spec(tensors={"mask": [1.0]}), "tensor"),
        (mask_spec(tensors={"musk": torch.ones(1, 1, 2, 2)}), "mask"),
        (mask_spec(tensors={"mask": torch.ones(1, 1, 2, 2, dtype=torch.long)}), "floating"),
        (mask_spec(tensors={"mask": torch.full((1, 1, 2, 2), 0.5)}), "only 0 and 1"),
        (mask_spec(tensors={"mask": torch.full((1, 1, 2, 2), torch.nan)}), "only 0 and 1"),
        ({"kind": "mask"}, "exactly the keys"),
        ([], "exactly the keys"),
    ],
)
def test_bad_specs_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        operator_from_spec(bad)


def test_values_that_are_not_finite_are_refused() -> None:
    kernel = torch.full((1, 2, 2), torch.inf)
    attributes = {"stride": 2, "cutoff": 0.01}
    with pytest.raises(OperatorError, match="not-a-number"):
        operator_from_spec(
            {
                "kind": "strided_convolution",
                "image_shape": [1, 2, 2],
                "attributes": attributes,
                "tensors": {"kernel": kernel},
            }
        )


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 1, 4, 4), torch.ones(1, 3, 2, 2), torch.ones(0, 1, 2, 2), torch.ones(1)]
)
def test_a_tensor_that_does_not_fit_the_image_is_refused(mask: torch.Tensor) -> None:
    with pytest.raises(ShapeError):
        operator_from_spec(mask_spec(tensors={"mask": mask}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("3", "exactly the keys"),
        (as_json(3), "nested lists} or safetensors"),
        (as_json("???"), "not a safetensors file in base64"),
        (as_json(base64.b64encode(b"nothing of the kind").decode()), "not a safetensors file in base64"),
        (as_json(in_base64({"mask": torch.ones(1, 1, 2, 2)})[:-8]), "not a safetensors file in base64"),
        (as_json({"mask": [[1, 2], [3]]}), "tensor 'mask' must be nested lists of numbers"),
        (as_json({"mask": [10**400]}), "tensor 'mask' must be nested lists of numbers"),
        ("9" * 5000, "not valid JSON"),
        (as_json({"mask": "text"}), "tensor 'mask' must be nested lists of numbers"),
        (as_json({"mask": {"a": 1}}), "tensor 'mask' must be nested lists of numbers"),
    ],
)
def test_bad_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        spec_from_json(text)


def test_too_large_specs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "MAX_BYTES", 8)
    with pytest.raises(InvFusionError, match="at most"):
        operator_from_spec(mask_spec())
    with pytest.raises(InvFusionError, match="characters"):
        spec_from_json(" " * 17)


def test_too_many_samples_are_refused() -> None:
    with pytest.raises(OperatorError, match="samples"):
        operator_from_spec(
            {
                "kind": "null",
                "image_shape": [1, 2, 2],
                "attributes": {},
                "tensors": {"placeholder": torch.zeros(10**6, 0)},
            }
        )


@pytest.mark.parametrize("kind", [Composition, Stack])
def test_operators_of_no_members_are_refused(kind: type[Composition] | type[Stack]) -> None:
    with pytest.raises(OperatorError, match="needs 1 to"):
        kind([])
