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


def ddpm_sigmas() -> Tensor:
    """The noise levels of DDPM's 1000 times, from the smallest: (1000,) float64, 0.01 to 157.

    In variance-exploding terms, sigma^2 = (1 - abar) / abar with a linear beta from 1e-4 to 0.02. Methods that take one
    step of fixed weight per level have their weights for this ladder. Source: Ho et al. 2020.
    """
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    return ((1 - kept) / kept).sqrt()


def ddpm_ladder(n: int) -> Tensor:
    """n evenly spaced times of DDPM, from the noisiest down, and a final 0: (n + 1,) float64.

    Raises `ConfigError` unless 1 <= n <= 1000.
    """
    if not 1 <= n <= 1000:
        raise ConfigError(f"DDPM has 1000 noise levels; {n} of them cannot be chosen")
    times = torch.linspace(999, 0, n, dtype=torch.float64).round().long()
    return torch.cat([ddpm_sigmas()[times], torch.zeros(1, dtype=torch.float64)])
