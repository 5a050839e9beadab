"""EDM preconditioning: how a raw network becomes a denoiser. Source: Karras et al. 2022, Table 1."""

from typing import NamedTuple

from torch import Tensor


class Preconditioning(NamedTuple):
    """D(x, sigma) = skip * x + out * F(in_ * x, noise): factors of shape (B, 1, 1, 1), `noise` (B,), float32.

    weight: of squared errors in the loss, 1 / out^2, (B,).
    """

    skip: Tensor
    out: Tensor
    in_: Tensor
    noise: Tensor
    weight: Tensor


def precondition(sigma: Tensor, sigma_data: float) -> Preconditioning:
    """The factors for noise levels (B,), all > 0."""
    sigma = sigma.float()
    s = sigma.view(-1, 1, 1, 1)
    total = s.square() + sigma_data**2
    return Preconditioning(
        skip=sigma_data**2 / total,
        out=s * sigma_data / total.sqrt(),
        in_=total.rsqrt(),
        noise=sigma.log() / 4,
        weight=(sigma.square() + sigma_data**2) / (sigma * sigma_data).square(),
    )
