"""Every registered family keeps the contract; being in the union enrols it."""

import contextlib
import inspect
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from invfusion.degradations import FAMILIES, AnyFamily, DegradationFamily, Mixture
from invfusion.errors import ConfigError
from invfusion.operators import LinearOperator, check_operator, scaled
from invfusion.rng import generator, generators

# Families in which nothing is random within a batch.
CERTAIN = {"null", "downsampling", "mosaic", "grayscale"}
SHAPES = [(3, 16, 16), (3, 8, 24), (1, 32, 8)]


@pytest.fixture(params=[*FAMILIES, "mixture"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(kind: str, batch_size: int = 3, shape: tuple[int, int, int] = (3, 16, 16), seed: int = 0) -> LinearOperator:
    members = [FAMILIES[name]() for name in fitting(shape)] or [FAMILIES["null"]()]
    family = Mixture(members=members) if kind == "mixture" else FAMILIES[kind]()
    return family.sample(batch_size=batch_size, image_shape=shape, generator=generator(seed, "operator"))


def fitting(shape: tuple[int, int, int]) -> list[str]:
    """The families that have operators for images of this shape."""
    kinds = []
    for kind, family in FAMILIES.items():
        with contextlib.suppress(ConfigError):
            family().check(shape)
            kinds.append(kind)
    return kinds


def same(a: LinearOperator, b: LinearOperator) -> bool:
    return a.attributes() == b.attributes() and all(
        torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_keep_the_operator_contract(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    if kind != "mixture" and kind not in fitting(shape):
        pytest.skip("the family has no operators for such images")
    report = check_operator(draw(kind, shape=shape).to(dtype))
    assert report.passed, str(report)


def test_one_seed_gives_one_operator_and_touches_no_global_state(kind: str) -> None:
    state = torch.random.get_rng_state()
    first = draw(kind)
    assert same(first, draw(kind))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(t.dtype == torch.float32 for t in first.tensors().values())


def test_samples_of_a_batch_and_seeds_differ(kind: str) -> None:
    if kind in CERTAIN:
        return
    operator = draw(kind, batch_size=4, shape=(3, 32, 32), seed=3)
    if operator.kind in ("null", "downsampling", "bayer", "grayscale"):
        return
    assert not same(operator.select([0]), operator.select([1]))
    assert not same(operator, draw(kind, batch_size=4, shape=(3, 32, 32), seed=4)) or kind == "mixture"


def test_operators_drawn_per_key_join_without_change() -> None:
    for family in FAMILIES.values():
        parts = [
            family(**{name: (4,) for name in ("strides", "factors") if name in family.model_fields}).sample(
                1, (3, 16, 16), g
            )
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


@pytest.mark.parametrize("boundary", ["valid", "reflect"])
def test_lens_blurs_with_other_boundaries_find_their_inverses_by_iteration(boundary: str) -> None:
    operator = FAMILIES["defocus_blur"](boundary=boundary).sample(2, (1, 16, 16), generator(0, "H"))
    assert operator.tier == "iterative"
    torch.testing.assert_close(operator.H(torch.ones(2, 1, 16, 16)), torch.ones(2, *operator.measurement_shape))


def test_scribbles_leave_most_of_the_image_and_touch_each() -> None:
    mask = FAMILIES["scribble"]().sample(32, (1, 64, 64), generator(0, "H")).mask
    missing = 1 - mask.flatten(1).mean(dim=1)
    assert float(missing.min()) > 0.02
    assert float(missing.mean()) < 0.5


class Doubled(DegradationFamily):
    """A family of a user's own."""

    kind: Literal["doubled"] = "doubled"
    factor: float = 2.0

    def sample(self, batch_size: int, image_shape: Sequence[int], generator: torch.Generator) -> LinearOperator:
        return scaled(FAMILIES["null"]().sample(batch_size, image_shape, generator), self.factor)


def test_a_family_of_a_users_own_is_validated_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter: TypeAdapter = TypeAdapter(AnyFamily)
    with pytest.raises(ValidationError, match=r"'doubled' found using 'kind' does not match.*'matrix'"):
        adapter.validate_python({"kind": "doubled"})
    monkeypatch.setitem(FAMILIES, "doubled", Doubled)
    config = adapter.validate_python({"kind": "doubled", "factor": 3})
    assert config == Doubled(factor=3)
    assert adapter.dump_python(config, mode="json") == {"kind": "doubled", "factor": 3.0}
    mixture = adapter.validate_python({"kind": "mixture", "members": [{"kind": "doubled"}, {"kind": "null"}]})
    assert mixture.model_dump()["members"][0] == {"kind": "doubled", "factor": 2.0}
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python({"kind": "mixture", "members": [{"kind": "doubled", "typo": 1}]})
    assert caught.value.errors()[0]["loc"][-1] == "typo"
    assert caught.value.errors()[0]["type"] == "extra_forbidden"
    with pytest.raises(ValidationError, match="'doubled'"):
        adapter.validate_python({"kind": "dubbled"})


def test_a_kind_cannot_be_taken_twice() -> None:
    class Impostor(Doubled):
        kind: Literal["null"] = "null"

    with pytest.raises(ConfigError, match="taken by"):
        FAMILIES.register(Impostor)
