"""Algorithm unrolling: a network trained through all steps of a sampler at once."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from invfusion.diffusion.losses import Condition, LossOutput, Network, squared_error, standard_normal
from invfusion.operators.base import Measurement
from invfusion.samplers.ddrm import UnrolledDDRM
from invfusion.schema import Config


class UnrolledDDRMLoss(Config):
    """The squared error of DDRM's restoration, with gradients through all of its network calls (paper, appendix D.5).

    The noise of the way is drawn anew each time, as in sampling. Activations of all steps are kept for the backward
    pass: the memory of one image grows with n_steps, so choose `micro_batch_size` accordingly.
    """

    kind: Literal["unrolled_ddrm"] = "unrolled_ddrm"
    sampler: UnrolledDDRM = UnrolledDDRM()

    trains_log_variance: ClassVar[bool] = False

    def __call__(self, network: Network, x: Tensor, condition: Condition, generator: torch.Generator) -> LossOutput:
        """x (B, C, H, W) in [-1, 1] -> mean((restored - x)^2)."""

        def denoiser(
            x: Tensor, sigma: Tensor, measurement: Measurement | None = None, class_labels: Tensor | None = None
        ) -> Tensor:
            denoised: Tensor = network(x, sigma, measurement, class_labels, condition.augment_labels)
            return denoised

        noise = standard_normal(tuple(x.shape), generator, x.device)
        seeds = torch.randint(2**62, (len(x),), generator=generator).tolist()
        restored = self.sampler.sample(
            denoiser,
            condition.measurement,
            noise,
            generators=[torch.Generator().manual_seed(seed) for seed in seeds],
            class_labels=condition.class_labels,
        ).x
        error = squared_error(restored, x)
        return LossOutput(error, {"mse": error.detach()})
