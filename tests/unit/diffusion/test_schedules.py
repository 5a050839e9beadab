import pytest
import torch

from invfusion.diffusion.schedules import edm_sigmas
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
