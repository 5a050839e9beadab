"""What an operator must offer, and how a sampler says that it does not."""

import pytest
import torch
from gaussian import GaussianDenoiser, half_mask, measured, noise, way

from invfusion.errors import OperatorError
from invfusion.operators import LinearOperator, MaskOperator, Measurement
from invfusion.samplers import DDNM, DDRM, MMSE, PiGDM, Sampler

SPECTRAL = [DDRM(n_steps=3), DDNM(n_steps=3), PiGDM(n_steps=3)]


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


@pytest.mark.parametrize("sampler", SPECTRAL, ids=lambda sampler: sampler.kind)
def test_with_noise_they_are_asked_for_by_name_before_any_work(sampler: Sampler) -> None:
    denoiser = GaussianDenoiser()
    with pytest.raises(
        OperatorError, match=r"requires 'spectral'.*it was given noisy measurements of the operator 'mask'"
    ):
        sampler.sample(denoiser, opaque(0.1)[0], noise(2), generators=way(2))
    assert denoiser.calls == 0


def test_an_operator_without_a_pseudo_inverse_is_refused() -> None:
    class Forward(MaskOperator):
        H_pinv = None

    measurement = Measurement(noise(2), Forward(half_mask(2).image_shape, half_mask(2).mask), torch.zeros(2))
    with pytest.raises(
        OperatorError, match="'ddrm' requires 'pinv': a measurement whose operator has an exact pseudo-i"
    ):
        DDRM().sample(GaussianDenoiser(), measurement, noise(2), generators=way(2))
    assert MMSE().sample(GaussianDenoiser(), measurement, noise(2), generators=way(2)).nfe == 1


def test_the_spectrum_of_an_opaque_operator_cannot_be_had() -> None:
    operator = opaque(0.0)[0].operator
    assert not operator.has_spectrum
    with pytest.raises(OperatorError, match="singular value decomposition of the operator 'mask' is not known"):
        operator.spectral(noise(2), lambda q: q)
