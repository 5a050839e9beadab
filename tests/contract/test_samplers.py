"""What holds for every sampler."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.errors import OperatorError, ShapeError
from invfusion.operators import Measurement
from invfusion.rng import generator, generators, randn
from invfusion.samplers import SAMPLERS, SamplerConfig

SHAPE = (3, 8, 8)
SETTINGS = {"heun": {"n_steps": 6, "S_churn": 3}, "ddrm": {"n_steps": 6}}


class CountingDenoiser:
    """Shrinks images towards the measurement, each by itself; offers components too."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, measurement=None, class_labels=None) -> Tensor:
        self.calls += 1
        variance = sigma.reshape(-1, 1, 1, 1) ** 2
        hint = 0 if measurement is None else measurement.H_pinv_y
        return x * 0.25 / (0.25 + variance) + 0.1 * hint

    def components(self, x: Tensor, sigma: Tensor, measurement=None, class_labels=None) -> tuple[Tensor, Tensor]:
        return self(x, sigma, measurement), torch.stack([x.roll(k, -1) * (k + 1) for k in range(3)], dim=1)


def sampler(kind: str):
    return SAMPLERS[kind](**SETTINGS.get(kind, {}))


def case(n: int = 4) -> tuple[Measurement, Tensor]:
    operator = FAMILIES["patch_inpainting"]().sample(batch_size=n, image_shape=SHAPE, generator=generator(0, "H"))
    x = randn(SHAPE, generators(0, "x", range(n)))
    return Measurement.of(x, operator), randn(SHAPE, generators(0, "noise", range(n)))


@pytest.fixture(params=sorted(SAMPLERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_output_is_finite_and_of_the_shape_of_the_noise(kind: str) -> None:
    measurement, noise = case()
    output = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    assert output.x.shape == noise.shape
    assert bool(output.x.isfinite().all())


def test_nfe_is_what_the_denoiser_saw(kind: str) -> None:
    measurement, noise = case()
    denoiser = CountingDenoiser()
    output = sampler(kind).sample(denoiser, measurement, noise, generators=generators(0, "way", range(4)))
    assert output.nfe == denoiser.calls


def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    measurement, noise = case()
    together = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    for rows in ([0], [3, 1]):
        way = generators(0, "way", rows)
        apart = sampler(kind).sample(CountingDenoiser(), measurement.select(rows), noise[rows], generators=way)
        torch.testing.assert_close(apart.x, together.x[rows])


def test_the_same_generators_give_the_same_image(kind: str) -> None:
    measurement, noise = case()
    draws = [
        sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4))).x
        for _ in range(2)
    ]
    assert torch.equal(*draws)


def test_what_does_not_fit_is_refused_before_any_work(kind: str) -> None:
    measurement, noise = case()
    denoiser = CountingDenoiser()
    way = generators(0, "way", range(4))
    with pytest.raises(ShapeError, match="as many generators"):
        sampler(kind).sample(denoiser, measurement, noise, generators=way[:2])
    with pytest.raises(ShapeError, match="does not fit a measurement"):
        sampler(kind).sample(denoiser, measurement, noise[:2], generators=way[:2])
    with pytest.raises(ShapeError, match="class_labels"):
        sampler(kind).sample(denoiser, measurement, noise, generators=way, class_labels=torch.zeros(2).long())
    assert denoiser.calls == 0


def test_a_lacking_capability_is_named(kind: str) -> None:
    _, noise = case()
    for capability in SAMPLERS[kind].requires:
        with pytest.raises(OperatorError, match=f"'{kind}' requires '{capability}'"):
            sampler(kind).sample(lambda *_: noise, None, noise, generators=generators(0, "way", range(4)))


def test_it_is_a_member_of_the_union(kind: str) -> None:
    adapter: TypeAdapter = TypeAdapter(SamplerConfig)
    assert adapter.validate_python({"kind": kind}) == SAMPLERS[kind]()
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": kind, "unknown": 1})
