"""DiffPIR: half-quadratic splitting, whose prior step is a denoiser and whose noise comes back level by level."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from invfusion.diffusion.schedules import ddpm_ladder
from invfusion.operators import Measurement
from invfusion.samplers.base import BoundDenoiser, RestoringSampler, damped, fresh_noise


class DiffPIR(RestoringSampler):
    """The estimate D is moved to the minimum of |y - H x|^2 + rho |x - D|^2 with rho = lam sigma_y^2 / sigma^2.

    The new level is reached by the noise that this leaves in x_sigma and by fresh noise: x_t = x_0 +
    t (sqrt(1 - zeta) (x - x_0) / sigma + sqrt(zeta) z). Without noise in y the minimum is the projection. The levels
    are DDPM's. lam: 3 to 25 by the authors' experiments. Source: Zhu et al. 2023 (arXiv 2305.08995), Algorithm 1.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    requires_if_noisy: ClassVar[frozenset[str]] = frozenset({"damped"})
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"lam": (1.0, 3.0, 7.0, 15.0, 25.0)}
    kind: Literal["diffpir"] = "diffpir"
    n_steps: int = Field(default=100, ge=1, le=1000)
    lam: float = Field(default=7.0, gt=0)
    zeta: float = Field(default=0.1, ge=0, le=1)

    def _restore(
        self, D: BoundDenoiser, measurement: Measurement, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        sigmas: list[float] = ddpm_ladder(self.n_steps).tolist()
        x = sigmas[0] * noise
        for sigma, t in pairwise(sigmas):
            denoised = D(x, sigma)
            residual = measurement.y - measurement.operator.H(denoised)
            x0 = denoised + damped(measurement, residual, sigma**2 / self.lam)
            fresh = fresh_noise(x, generators) if t > 0 and self.zeta > 0 else torch.zeros_like(x)
            x = x0 + t * (math.sqrt(1 - self.zeta) * (x - x0) / sigma + math.sqrt(self.zeta) * fresh)
        return x
