"""What an operator must offer, and how a sampler says that it does not."""

import pytest
import torch
from gaussian import GaussianDenoiser, half_mask, measured, noise, way

from invfusion.errors import OperatorError
from invfusion.operators import LinearOperator, MaskOperator, Measurement
from invfusion.samplers import DDNM, DDRM, MMSE, Heun, PiGDM, Sampler

DAMPED = [DDNM(n_steps=3), PiGDM(n_steps=3)]
SPECTRAL = [DDRM(n_steps=3), *DAMPED]


class Opaque(MaskOperator):
    """A mask that does not tell its singular values."""

    _spectral = LinearOperator._spectral


def opaque(sigma_y: float) -> tuple[Measurement, Measurement]:
    """The same measurement with the opaque operator and with the plain one."""
    _, plain = measured(2, sigma_y)
    return Measurement(plain.y, Opaque(half_mask(2).image_shape, half_mask(2).mask), plain.sigma_y), plain


@pytest.mark.parametrize("sampler", SPECTRAL, ids=lambda sampler: sampler.kind)
def test_without_noise_no_singular_values_are_needed(sampler: Sampler) -> None:
    x, same = (sampler.sample(GaussianDenoiser(), m, noise(2), generators=way(2)).x for m in opaque(0.0))
    torch.testing.assert_close(x, same)


def test_with_noise_ddrm_asks_for_them_by_name_before_any_work() -> None:
    denoiser = GaussianDenoiser()
    with pytest.raises(
        OperatorError, match=r"requires 'spectral'.*it was given noisy measurements of the operator 'mask'"
    ):
        DDRM(n_steps=3).sample(denoiser, opaque(0.1)[0], noise(2), generators=way(2))
    assert denoiser.calls == 0


def test_with_noise_pigdm_does_the_same_without_them() -> None:
    x, same = (DAMPED[1].sample(GaussianDenoiser(), m, noise(2), generators=way(2)).x for m in opaque(0.1))
    torch.testing.assert_close(x, same)


def test_with_noise_ddnm_damps_where_it_does_not_know_them() -> None:
    """Nearly the same images: a smooth correction in the place of a threshold."""
    x, other = (DDNM(n_steps=60).sample(GaussianDenoiser(), m, noise(2), generators=way(2)).x for m in opaque(0.1))
    assert 0 < (x - other).abs().max() < 0.3


def test_an_operator_that_knows_only_its_adjoint_is_refused() -> None:
    class AdjointOnly(MaskOperator):
        tier = "adjoint only"

    measurement = Measurement(noise(2), AdjointOnly(half_mask(2).image_shape, half_mask(2).mask), 0.0)
    for sampler in SPECTRAL:
        with pytest.raises(OperatorError, match="requires 'pinv'"):
            sampler.sample(GaussianDenoiser(), measurement, noise(2), generators=way(2))
    with pytest.raises(OperatorError, match="knows only its adjoint"):
        measurement.operator.H_pinv(measurement.y)


class Conditional(GaussianDenoiser):
    is_conditional = True


class Unconditional(GaussianDenoiser):
    is_conditional = False


def test_pairings_that_ignore_the_measurement_are_refused() -> None:
    _, measurement = measured(2, 0.0)
    with pytest.raises(OperatorError, match=r"'heun' leaves the measurement to the denoiser.*unconditional"):
        Heun(n_steps=2).sample(Unconditional(), measurement, noise(2), generators=way(2))
    with pytest.raises(OperatorError, match=r"'ddnm' uses the measurement itself.*conditional"):
        DDNM(n_steps=2).sample(Conditional(), measurement, noise(2), generators=way(2))
    assert Heun(n_steps=2).sample(Unconditional(), None, noise(2), generators=way(2)).nfe == 3
    assert Heun(n_steps=2).sample(Conditional(), measurement, noise(2), generators=way(2)).nfe == 3


def test_an_operator_without_a_pseudo_inverse_is_refused() -> None:
    class Forward(MaskOperator):
        H_pinv = None

    measurement = Measurement(noise(2), Forward(half_mask(2).image_shape, half_mask(2).mask), torch.zeros(2))
    with pytest.raises(OperatorError, match="'ddrm' requires 'pinv': a measurement whose operator has a pseudo-i"):
        DDRM().sample(GaussianDenoiser(), measurement, noise(2), generators=way(2))
    assert MMSE().sample(GaussianDenoiser(), measurement, noise(2), generators=way(2)).nfe == 1


def test_the_spectrum_of_an_opaque_operator_cannot_be_had() -> None:
    operator = opaque(0.0)[0].operator
    assert not operator.has_spectrum
    with pytest.raises(OperatorError, match="singular value decomposition of the operator 'mask' is not known"):
        operator.spectral(noise(2), lambda q: q)
