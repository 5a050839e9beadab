import torch
from gaussian import GaussianDenoiser, noise, way

from invfusion.samplers import MMSE


def test_one_call_whose_input_leaks_a_four_hundredth_of_the_noise() -> None:
    denoiser = GaussianDenoiser()
    output = MMSE().sample(denoiser, None, noise(2), generators=way(2))
    assert output.nfe == denoiser.calls == 1
    torch.testing.assert_close(output.x, noise(2) * 100 * 0.25 / (0.25 + 100**2))
    torch.testing.assert_close(output.x, noise(2) * 0.0025, rtol=1e-4, atol=0)
