"""The denoiser as a whole: preconditioning, conditioning, variants, precision, gradients."""

import pytest
import torch
from model_helpers import TINY, mask_operator, measure, normal, shaken

from invfusion.diffusion.precond import precondition
from invfusion.errors import ConfigError, ShapeError
from invfusion.models import build_denoiser, with_components
from invfusion.operators.base import Measurement
from invfusion.operators.null import NullOperator

SIGMA = torch.tensor([0.02, 1.0, 30.0])


def images(batch_size: int = 3) -> torch.Tensor:
    return normal(batch_size, 3, 8, 8)


@pytest.mark.parametrize("variant", ["invfusion", "palette", "unconditional"])
def test_fresh_network_gives_c_skip_x(variant: str) -> None:
    x = images()
    denoised = build_denoiser(TINY, variant)(x, SIGMA, measure(x))  # type: ignore[arg-type]
    assert torch.equal(denoised, precondition(SIGMA, 0.5).skip * x)


def test_weights_depend_on_the_seed_and_on_no_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (build_denoiser(TINY, seed=seed).net.patch_in.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    x, denoiser = images(), shaken(n_classes=2)
    measurement, labels = measure(x), torch.tensor([0, 1, 2])
    together = denoiser(x, SIGMA, measurement, labels)
    for i in range(3):
        alone = denoiser(x[i : i + 1], SIGMA[i : i + 1], measurement.select([i]), labels[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-4)


def test_one_noise_level_for_all() -> None:
    x, denoiser = images(), shaken()
    denoised, logvar, _ = denoiser(x, torch.tensor(2.0), measure(x), return_logvar=True)
    torch.testing.assert_close(denoised, denoiser(x, torch.full((3,), 2.0), measure(x)))
    assert logvar.shape == (3,)


@pytest.mark.parametrize("what", ["y", "operator", "sigma", "class", "augmentation"])
def test_everything_given_makes_a_difference(what: str) -> None:
    x, denoiser = images(), shaken(n_classes=2)
    given = {
        "sigma": SIGMA,
        "measurement": measure(x),
        "class_labels": torch.tensor([0, 0, 0]),
        "augment_labels": torch.zeros(3, 9),
    }
    base = denoiser(x, **given)
    y, operator, level = given["measurement"].y, given["measurement"].operator, given["measurement"].sigma_y  # type: ignore[attr-defined]
    changed = {
        "y": {"measurement": Measurement(y + 1, operator, level)},
        "operator": {"measurement": Measurement(y, operator.select([2, 1, 0]), level)},
        "sigma": {"sigma": SIGMA * 1.5},
        "class": {"class_labels": torch.tensor([1, 2, 1])},
        "augmentation": {"augment_labels": torch.full((3, 9), 0.3)},
    }[what]
    difference = (denoiser(x, **{**given, **changed}) - base).abs().amax(dim=(1, 2, 3))
    assert (difference[[0, 2]] > 1e-5).all(), difference


def test_defaults_are_no_class_and_no_augmentation() -> None:
    x, denoiser = images(), shaken(n_classes=2)
    explicit = denoiser(x, SIGMA, None, torch.tensor([2, 2, 2]), torch.zeros(3, 9))
    torch.testing.assert_close(denoiser(x, SIGMA), explicit)


def test_nothing_measured_is_the_null_operator() -> None:
    x, denoiser = images(), shaken()
    null = Measurement.of(x, NullOperator((3, 8, 8), torch.zeros(3, 0)))
    assert torch.equal(denoiser(x, SIGMA), denoiser(x, SIGMA, null))


def test_null_operator_equals_degraded_features_that_are_zero() -> None:
    """The shortcut for "nothing measured" against the long way: an all-zero mask, whose H and y are zero."""
    x, denoiser = images(), shaken()
    blind = Measurement.of(x, type(mask_operator(1))((3, 8, 8), torch.zeros(3, 1, 8, 8)))
    torch.testing.assert_close(denoiser(x, SIGMA, blind), denoiser(x, SIGMA), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("measured", [True, False])
def test_every_parameter_has_a_gradient(measured: bool) -> None:
    x, denoiser = images(), shaken(n_classes=2)
    denoised, logvar, _ = denoiser(x, SIGMA, measure(x) if measured else None, return_logvar=True)
    (denoised.square().sum() + logvar.sum()).backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradient_flows_through_the_feature_degradation_layer() -> None:
    x, denoiser = images(), shaken()
    denoiser(x, SIGMA, measure(x)).square().sum().backward()
    mixes = {n: p for n, p in denoiser.named_parameters() if ".degradation.mix." in n}
    assert len(mixes) == 2 * 3
    for name, parameter in mixes.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_palette_sees_only_the_back_projection() -> None:
    """Another operator and another y with the same H_pinv y: for Palette no difference, for InvFusion a large one."""
    x = images()
    mask = mask_operator(3)
    first = Measurement(mask.H(x), mask, torch.zeros(3))
    whole = type(mask)((3, 8, 8), torch.ones(3, 1, 8, 8))
    second = Measurement(first.H_pinv_y, whole, torch.zeros(3))
    for variant, equal in (("palette", True), ("invfusion", False)):
        denoiser = shaken(variant=variant)
        close = torch.allclose(denoiser(x, SIGMA, first), denoiser(x, SIGMA, second), atol=1e-4)
        assert close is equal, variant


def test_unconditional_ignores_measurements() -> None:
    x, denoiser = images(), shaken(variant="unconditional")
    assert not denoiser.is_conditional
    assert torch.equal(denoiser(x, SIGMA), denoiser(x, SIGMA, measure(x)))


@pytest.mark.parametrize("size", [(8, 12), (16, 4)])
def test_images_need_not_be_square(size: tuple[int, int]) -> None:
    x, denoiser = normal(2, 3, *size), shaken(image_size=size)
    assert denoiser(x, SIGMA[:2], measure(x)).shape == x.shape


def test_bfloat16_autocast_stays_close() -> None:
    x, denoiser = images(), shaken()
    exact = denoiser(x, SIGMA, measure(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = denoiser(x, SIGMA, measure(x))
    assert half.dtype == torch.float32
    assert (half - exact).square().mean() < 1e-3 * exact.square().mean()


@pytest.mark.parametrize("n_components", [1, 3])
def test_components(n_components: int) -> None:
    x, denoiser = images(), build_denoiser(TINY, n_components=n_components)
    mean, directions = denoiser.components(x, SIGMA, measure(x))
    assert (mean.shape, directions.shape) == (x.shape, (3, n_components, 3, 8, 8))
    assert torch.equal(mean, precondition(SIGMA, 0.5).skip * x)
    assert (directions.flatten(2).norm(dim=2) > 0).all(), "directions start off zero"
    with pytest.raises(ConfigError, match="no principal components"):
        build_denoiser(TINY).components(x, SIGMA)


def test_growing_components_keeps_the_estimate() -> None:
    x, denoiser = images(), shaken()
    grown = with_components(denoiser, 2)
    torch.testing.assert_close(grown(x, SIGMA, measure(x)), denoiser(x, SIGMA, measure(x)), atol=1e-5, rtol=1e-5)
    assert grown.components(x, SIGMA)[1].shape == (3, 2, 3, 8, 8)


def test_what_does_not_fit_is_refused() -> None:
    x, denoiser = images(), build_denoiser(TINY, n_classes=2)
    with pytest.raises(ShapeError, match=r"takes images \(B, 3, H, W\) of any size, got \(3, 1, 8, 12\)"):
        denoiser(normal(3, 1, 8, 12), SIGMA)
    with pytest.raises(ShapeError, match=r"acts on images \(3, 16, 16\), but the model was given \(3, 8, 8\)"):
        denoiser(x, SIGMA, measure(normal(3, 3, 16, 16)))
    with pytest.raises(ShapeError, match="holds 2 samples for 3 images"):
        denoiser(x, SIGMA, measure(x[:2]))
    with pytest.raises(ShapeError, match="sigma"):
        denoiser(x, SIGMA[:2])
    with pytest.raises(ShapeError, match="class_labels"):
        denoiser(x, SIGMA, None, torch.tensor([1]))


@pytest.mark.parametrize("size", [(8, 8), (11, 5), (1, 3), (20, 9)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    denoiser = shaken(variant="invfusion", n_components=1)
    x = normal(2, 3, *size)
    out, directions = denoiser.components(x, torch.tensor(1.0), measure(x))
    assert out.shape == x.shape
    assert directions.shape == (2, 1, 3, *size)
    assert out.isfinite().all()


def test_what_is_far_from_the_borders_is_the_same_in_a_crop() -> None:
    """Positions keep the pitch of training, and windows do not grow with the image."""
    config = TINY.model_copy(update={"levels": tuple(level.model_copy(update={"kernel": 3}) for level in TINY.levels)})
    denoiser = shaken(config, variant="palette")
    x = normal(1, 3, 40, 48)
    crop = x[..., 4:36, 8:40]
    whole = denoiser(x, torch.tensor(1.0))[..., 4:36, 8:40]
    part = denoiser(crop, torch.tensor(1.0))
    inner = (..., slice(10, -10), slice(10, -10))
    torch.testing.assert_close(whole[inner], part[inner], atol=1e-5, rtol=1e-4)
    assert (whole - part).abs().max() > 1e-3


def test_measurements_at_any_size_reach_the_result() -> None:
    denoiser = shaken(variant="invfusion")
    x = normal(1, 3, 11, 9)
    told, other = measure(x), measure(x + 1)
    assert not torch.allclose(denoiser(x, torch.tensor(1.0), told), denoiser(x, torch.tensor(1.0), other))
