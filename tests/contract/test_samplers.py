"""What holds for every sampler."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from invfusion.degradations import FAMILIES
from invfusion.errors import OperatorError, ShapeError
from invfusion.gaussian import GaussianPrior
from invfusion.operators import Measurement
from invfusion.rng import generator, generators, randn
from invfusion.samplers import FEW_STEP, SAMPLERS, AnySampler

SHAPE = (3, 8, 8)
SETTINGS = {
    "heun": {"n_steps": 6, "S_churn": 3},
    "ddrm": {"n_steps": 6},
    "ddnm": {"n_steps": 6},
    "dps": {"n_steps": 6},
    "pigdm": {"n_steps": 6},
    "diffpir": {"n_steps": 6},
    "pivot": {"n_steps": 4},
    "flow": {"n_steps": 4},
    "consistency": {"n_steps": 3},
    "daps": {"n_levels": 3, "n_ode_steps": 2, "n_langevin_steps": 4},
    "mgps": {"n_levels": 8, "n_gradient_steps_boosted": 3},
    "dpmpp_2m": {"n_steps": 6},
    "deis": {"n_steps": 6},
    "indi": {"n_steps": 6},
    "aseq_dip": {"n_outer": 2, "n_inner": 1, "width": 4},
}


class CountingDenoiser:
    """Shrinks images towards the measurement, each by itself; offers components and a Gaussian prior too."""

    prior = GaussianPrior.fit(0.5 * randn(SHAPE, generators(0, "prior", range(9))), rank=4)

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


def case(n: int = 4, sigma_y: float = 0.0, family: str = "patch_inpainting") -> tuple[Measurement, Tensor]:
    operator = FAMILIES[family]().sample(batch_size=n, image_shape=SHAPE, generator=generator(0, "H"))
    x = randn(SHAPE, generators(0, "x", range(n)))
    n_y = randn(operator.measurement_shape, generators(0, "n_y", range(n)))
    return Measurement.of(x, operator, sigma_y, n_y), randn(SHAPE, generators(0, "noise", range(n)))


@pytest.fixture(params=sorted(SAMPLERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("family", ["patch_inpainting", "strided_motion_blur", "matrix", "null"])
def test_output_is_finite_and_of_the_shape_of_the_noise(kind: str, family: str, sigma_y: float) -> None:
    measurement, noise = case(sigma_y=sigma_y, family=family)
    output = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    assert output.x.shape == noise.shape
    assert bool(output.x.isfinite().all())
    assert not bool(output.diverged.any())


def test_nfe_is_what_the_denoiser_saw(kind: str) -> None:
    measurement, noise = case()
    denoiser = CountingDenoiser()
    output = sampler(kind).sample(denoiser, measurement, noise, generators=generators(0, "way", range(4)))
    assert output.nfe > 0 or not sampler(kind).uses_denoiser
    assert denoiser.calls == (output.nfe if sampler(kind).uses_denoiser else 0)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_an_image_does_not_depend_on_its_neighbours(kind: str, sigma_y: float) -> None:
    measurement, noise = case(sigma_y=sigma_y)
    together = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    for rows in ([0], [3, 1]):
        way = generators(0, "way", rows)
        apart = sampler(kind).sample(CountingDenoiser(), measurement.select(rows), noise[rows], generators=way)
        torch.testing.assert_close(apart.x, together.x[rows])


@pytest.mark.parametrize("family", ["patch_inpainting", "strided_motion_blur", "matrix"])
def test_each_image_has_its_own_noise_level(kind: str, family: str) -> None:
    """A batch of a noiseless and a noisy measurement gives what each gives alone."""
    (clean, noise), (noisy, _) = case(2, family=family), case(2, 0.1, family=family)
    mixed = Measurement(torch.stack([clean.y[0], noisy.y[1]]), clean.operator, torch.tensor([0.0, 0.1]))
    together = sampler(kind).sample(CountingDenoiser(), mixed, noise, generators=generators(0, "way", range(2)))
    for i, alone in enumerate((clean, noisy)):
        way = generators(0, "way", [i])
        apart = sampler(kind).sample(CountingDenoiser(), alone.select([i]), noise[i : i + 1], generators=way)
        torch.testing.assert_close(apart.x[0], together.x[i], rtol=1e-3, atol=1e-4)


def test_the_same_generators_give_the_same_image(kind: str) -> None:
    measurement, noise = case()
    draws = [
        sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4))).x
        for _ in range(2)
    ]
    assert torch.equal(*draws)


def test_a_diverged_image_is_named_and_spoils_no_other(kind: str) -> None:
    measurement, noise = case(sigma_y=0.1)
    clean = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    noise[1, 0, 0, 0] = measurement.y[1, 0, 0, 0] = torch.nan
    output = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    assert output.diverged.tolist() == [False, True, False, False]
    torch.testing.assert_close(output.x[[0, 2, 3]], clean.x[[0, 2, 3]])


def test_it_runs_in_inference_mode_as_elsewhere(kind: str) -> None:
    """There, gradients through the denoiser must be switched on, on tensors that can take part in them."""
    measurement, noise = case(sigma_y=0.1)
    expected = sampler(kind).sample(CountingDenoiser(), measurement, noise, generators=generators(0, "way", range(4)))
    with torch.inference_mode():
        made_there, noise = case(sigma_y=0.1)
        output = sampler(kind).sample(CountingDenoiser(), made_there, noise, generators=generators(0, "way", range(4)))
    torch.testing.assert_close(output.x, expected.x)
    assert not output.x.requires_grad


def test_what_is_tunable_can_be_tuned(kind: str) -> None:
    for field, values in SAMPLERS[kind].tunable.items():
        assert len({getattr(SAMPLERS[kind](**{field: value}), field) for value in values}) == len(values)
        assert getattr(SAMPLERS[kind](), field) in values


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
    adapter: TypeAdapter = TypeAdapter(AnySampler)
    assert adapter.validate_python({"kind": kind}) == SAMPLERS[kind]()
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": kind, "unknown": 1})


def test_the_few_step_preset_takes_ten_calls() -> None:
    measurement, noise = case()
    denoiser = CountingDenoiser()
    assert FEW_STEP.sample(denoiser, measurement, noise, generators=generators(0, "way", range(4))).nfe == 10
    assert denoiser.calls == 10
