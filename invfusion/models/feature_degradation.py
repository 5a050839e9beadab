"""The Feature Degradation Layer: features, seen as a stack of images, are degraded by the sample's own operator.

Source: paper section 3 and Figure 2. Between H and its pseudo-inverse, a learned pointwise map compares the degraded
features with the measurement y.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from invfusion.models.layers import Linear
from invfusion.operators.base import Measurement


class FeatureDegradation(nn.Module):
    """Tokens (B, H, W, d) -> H_pinv(gelu(mix([y, H(tokens as images)]))), a stack of images, float32.

    The stack is (B, stack size, C, H * patch, W * patch); `to_tokens` makes tokens (B, H, W, d) of it.

    patch: side in pixels of one token's image patch; channels: of the image; d = stack size * channels * patch^2, the
    features ordered (row in patch, column in patch, stack, channel). Tokens beyond the operator's image, which pad it
    to whole tokens, are not degraded: they see zeros. The back-projection is the operator's `back_project`, exact for
    all of ours; where `damping`, the variance of images, is given, noisy measurements are projected back by
    H^T (H H^T + sigma_y^2 / damping)^-1, which does not magnify their noise. Gradients flow through all of it, in
    float32 under any autocast: an inverse blur magnifies the rounding of what lies between H and H_pinv up to a
    hundredfold.
    """

    def __init__(self, width: int, patch: int, channels: int, damping: float | None = None) -> None:
        super().__init__()
        self.patch = patch
        self.channels = channels
        self.stack_size = width // (channels * patch**2)
        self.damping = damping
        self.mix = Linear(self.stack_size + 1, self.stack_size, bias=True)

    # Whether a compiled network calls the operator between its graphs, which then serve every operator.
    outside_graphs = False

    def forward(self, x: Tensor, measurement: Measurement) -> Tensor:
        degrade = self._outside if self.outside_graphs else self._degraded
        return degrade(self._to_images(x.float()), measurement)

    @_disable_dynamo  # `torch.compiler.disable` would load the compiler where nothing is compiled
    def _outside(self, features: Tensor, measurement: Measurement) -> Tensor:
        return self._degraded(features, measurement)

    def _degraded(self, features: Tensor, measurement: Measurement) -> Tensor:
        """(B, stack, channels, H, W) -> the same."""
        operator, y = measurement.operator, measurement.y
        height, width = operator.image_shape[1:]
        beyond = (0, features.shape[-1] - width, 0, features.shape[-2] - height)
        with torch.autocast(features.device.type, enabled=False):
            z = operator.H(features[..., :height, :width]).flatten(2)
            both = torch.cat((y.flatten(1).unsqueeze(1).to(z.dtype), z), dim=1)
            mixed = F.gelu(self._mixed(both))
            images = self._back(mixed.view(*mixed.shape[:2], *operator.measurement_shape), measurement)
            return F.pad(images, beyond) if any(beyond) else images

    def _mixed(self, stack: Tensor) -> Tensor:
        """(B, stack + 1, n) -> (B, stack, n). As products of the batch: `matmul` would copy the stack twice."""
        weight, bias = self.mix.weight, self.mix.bias[:, None]
        return torch.baddbmm(bias.expand(len(stack), -1, 1), weight.expand(len(stack), -1, -1), stack)

    def _back(self, y: Tensor, measurement: Measurement) -> Tensor:
        operator = measurement.operator
        if self.damping is None or not measurement.is_noisy:
            return operator.back_project(y)
        level = measurement.sigma_y.to(y).square() / self.damping
        return operator.H_adjoint(operator.damped_inverse(y, level))

    def _to_images(self, x: Tensor) -> Tensor:
        """(B, H, W, d) -> (B, stack, channels, H * patch, W * patch)."""
        return rearrange(x, "b h w (p q k c) -> b k c (h p) (w q)", p=self.patch, q=self.patch, c=self.channels)

    def to_tokens(self, images: Tensor) -> Tensor:
        """(B, stack, channels, H * patch, W * patch) -> (B, H, W, d), the inverse of `_to_images`."""
        return rearrange(images, "b k c (h p) (w q) -> b h w (p q k c)", p=self.patch, q=self.patch)
