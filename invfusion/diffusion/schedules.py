"""Grids of noise levels."""

import torch
from torch import Tensor

from invfusion.errors import ConfigError


def edm_sigmas(n: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0) -> Tensor:
    """The noise levels sigma_max > ... > sigma_min of the EDM sampler and a final 0: (n + 1,) float64.

    Raises `ConfigError` unless n >= 1 and 0 < sigma_min < sigma_max. Source: EDM, Eq. 5.
    """
    if n < 1 or not 0 < sigma_min < sigma_max:
        raise ConfigError(f"need n >= 1 and 0 < sigma_min < sigma_max, got n={n}, {sigma_min=}, {sigma_max=}")
    ramp = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])
