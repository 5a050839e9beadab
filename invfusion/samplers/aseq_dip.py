"""ASeq-DIP: a deep image prior, an untrained network fitted to each image, whose input follows its output."""

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from invfusion.diffusion.protocols import DenoiserLike
from invfusion.operators import Measurement
from invfusion.samplers.base import Follows, SampleOutput, Sampler

WEIGHT_STD = 0.02


class ASeqDIP(Sampler):
    """Autoencoding sequential deep image prior, with a network of its own for each image; no denoiser and no noise.

    From z = H_pinv y, n_outer times: take n_inner steps of Adam on |H f(z) - y|^2 + weight |f(z) - z|^2 (means, pixels
    in [0, 1]), then put z = f(z). The result is the last z. `nfe` counts calls of that small network, each inner one
    with a backward pass; `width` is that of its finest level. Source: Alkhouri et al. 2024, Algorithm 1, with the U-Net
    of their code.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"pinv"})
    uses_denoiser: ClassVar[bool] = False
    tunable: ClassVar[dict[str, tuple[float, ...]]] = {"lr": (1e-4, 3e-4, 1e-3)}
    follows: ClassVar[Follows] = "nothing"
    kind: Literal["aseq_dip"] = "aseq_dip"
    n_outer: int = Field(default=2000, ge=1)
    n_inner: int = Field(default=2, ge=1)
    weight: float = Field(default=1.0, ge=0)
    lr: float = Field(default=1e-4, gt=0)
    width: int = Field(default=64, ge=1)

    def _sample(
        self,
        denoiser: DenoiserLike,  # noqa: ARG002
        measurement: Measurement | None,
        noise: Tensor,  # noqa: ARG002
        generators: Sequence[torch.Generator],
        class_labels: Tensor | None,  # noqa: ARG002
    ) -> SampleOutput:
        assert measurement is not None, "checked by `requires`"
        # Copies that are made outside of inference mode can take part in a backward pass.
        with torch.inference_mode(False), torch.enable_grad():
            images = [self._restore(measurement.select([i]), draws) for i, draws in enumerate(generators)]
        return SampleOutput(torch.cat(images), nfe=self.n_outer * (self.n_inner + 1))

    def _restore(self, measurement: Measurement, draws: torch.Generator) -> Tensor:
        """One image, (1, C, H, W)."""
        H = measurement.operator
        # With u = (x + 1) / 2, y = H x becomes H u = (y + H 1) / 2.
        y = (measurement.y + H.H(torch.ones(1, *H.image_shape, device=measurement.y.device))) / 2
        z = H.H_pinv(y)
        network = UNet(H.image_shape[0], self.width, draws).to(z.device)
        adam = torch.optim.Adam(network.parameters(), lr=self.lr)
        for _ in range(self.n_outer):
            for _ in range(self.n_inner):
                u = network(z)
                loss = _mean_square(H.H(u) - y) + self.weight * _mean_square(u - z)
                adam.zero_grad()
                torch.autograd.backward(loss)
                adam.step()
            with torch.no_grad():
                z = network(z)
        return 2 * z - 1


def _mean_square(error: Tensor) -> Tensor:
    return error.square().sum() / max(error.numel(), 1)


class UNet(nn.Module):
    """Three resolutions with skip connections. Batch normalisation sees one image, so it normalises over pixels."""

    def __init__(self, channels: int, width: int, draws: torch.Generator) -> None:
        super().__init__()
        double = 2 * width
        self.down = nn.ModuleList([_block(channels, width), _block(width, double), _block(double, double)])
        self.up = nn.ModuleList([_block(double + double, double), _block(double + width, width)])
        self.out = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(cast(Tensor, self.out.bias))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=WEIGHT_STD, generator=draws)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, H, W) -> the same shape, unbounded."""
        skips = [self.down[0](x)]
        for block in self.down[1:]:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:], mode="bilinear"), skip], dim=1))
        image: Tensor = self.out(x)
        return image


def _block(n_in: int, n_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in (n_in, n_out):
        layers += [nn.Conv2d(n, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers)
