"""Every registered family keeps the contract; being in the union enrols it."""

import inspect

import pytest
import torch
from pydantic import TypeAdapter

from invfusion.degradations import FAMILIES, AnyFamily, Mixture
from invfusion.errors import ConfigError
from invfusion.operators import LinearOperator, check_operator
from invfusion.rng import generator, generators

SHAPES = [(3, 16, 16), (3, 8, 24), (1, 32, 8)]


@pytest.fixture(params=[*FAMILIES, "mixture"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(kind: str, batch_size: int = 3, shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> LinearOperator:
    members = [family() for family in FAMILIES.values()]
    family = Mixture(members=members) if kind == "mixture" else FAMILIES[kind]()
    return family.sample(batch_size=batch_size, image_shape=shape, generator=generator(seed, "operator"))


def same(a: LinearOperator, b: LinearOperator) -> bool:
    return a.attributes() == b.attributes() and all(
        torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_keep_the_operator_contract(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    report = check_operator(draw(kind, shape=shape).to(dtype))
    assert report.passed, str(report)


def test_one_seed_gives_one_operator_and_touches_no_global_state(kind: str) -> None:
    state = torch.random.get_rng_state()
    first = draw(kind)
    assert same(first, draw(kind))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(t.dtype == torch.float32 for t in first.tensors().values())


def test_samples_of_a_batch_and_seeds_differ(kind: str) -> None:
    if kind == "null":
        return
    operator = draw(kind, batch_size=4, shape=(3, 32, 32), seed=3)
    if operator.kind == "null":
        return
    assert not same(operator.select([0]), operator.select([1]))
    assert not same(operator, draw(kind, batch_size=4, shape=(3, 32, 32), seed=4)) or kind == "mixture"


def test_operators_drawn_per_key_join_without_change() -> None:
    for family in FAMILIES.values():
        parts = [
            family(**({"strides": (4,)} if "strides" in family.model_fields else {})).sample(1, (3, 16, 16), g)
            for g in generators(0, "operator", ["a", "b", "c"])
        ]
        joined = type(parts[0]).cat(parts)
        assert all(same(joined.select([i]), part) for i, part in enumerate(parts))


def test_impossible_requests_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        draw(kind, batch_size=0)
    with pytest.raises(ConfigError, match="image_shape"):
        draw(kind, shape=(3, 0, 4))


def test_configs_round_trip_through_the_union(kind: str) -> None:
    spec = {"kind": kind} if kind != "mixture" else {"kind": kind, "members": [{"kind": "null"}, {"kind": "matrix"}]}
    config = TypeAdapter(AnyFamily).validate_python(spec)
    assert TypeAdapter(AnyFamily).validate_python(config.model_dump(mode="json")) == config
    with pytest.raises(ValueError, match="Extra inputs"):
        TypeAdapter(AnyFamily).validate_python({**spec, "typo": 1})


def test_sample_has_the_promised_keywords() -> None:
    for family in [*FAMILIES.values(), Mixture]:
        assert list(inspect.signature(family.sample).parameters)[1:] == ["batch_size", "image_shape", "generator"]
