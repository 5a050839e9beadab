import pytest
import torch

from invfusion.diffusion.schedules import ddpm_ladder, ddpm_sigmas, edm_sigmas
from invfusion.errors import ConfigError


def test_levels_of_the_paper() -> None:
    sigmas = edm_sigmas(32)
    assert sigmas.shape == (33,)
    torch.testing.assert_close(
        sigmas[:4], torch.tensor([80, 66.931, 55.736, 46.186], dtype=torch.float64), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        sigmas[-5:], torch.tensor([0.015757, 0.008453, 0.004267, 0.002, 0], dtype=torch.float64), rtol=1e-4, atol=1e-9
    )


def test_one_level() -> None:
    assert edm_sigmas(1).tolist() == pytest.approx([80, 0])


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 5, "sigma_min": 0}, {"n": 5, "sigma_max": 0.001}])
def test_impossible_grids_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="sigma_min"):
        edm_sigmas(**wrong)


def test_levels_of_ddpm() -> None:
    """The noise levels at some of its times."""
    known = {10: 0.047, 50: 0.176, 100: 0.342, 200: 0.724, 350: 1.59, 500: 3.44, 700: 12.0, 999: 157}
    sigmas = ddpm_sigmas()
    for time, sigma in known.items():
        assert float(sigmas[time]) == pytest.approx(sigma, rel=0.02)


def test_its_ladder_goes_down_evenly_in_time() -> None:
    ladder, sigmas = ddpm_ladder(4), ddpm_sigmas()
    torch.testing.assert_close(ladder, torch.stack([sigmas[999], sigmas[666], sigmas[333], sigmas[0], 0 * sigmas[0]]))
    assert ddpm_ladder(1).tolist() == [sigmas[999], 0]
    assert bool((ddpm_ladder(1000).diff() < 0).all())
    with pytest.raises(ConfigError, match="1000 noise levels"):
        ddpm_ladder(1001)
