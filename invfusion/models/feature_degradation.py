"""The Feature Degradation Layer: features, seen as a stack of images, are degraded by the sample's own operator.

Source: paper section 3 and Figure 2. Between H and its pseudo-inverse, a learned pointwise map compares the degraded
features with the measurement y.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invfusion.models.layers import Linear
from invfusion.operators.base import Measurement


class FeatureDegradation(nn.Module):
    """Tokens (B, H, W, d) -> H_pinv(gelu(mix([y, H(tokens as images)]))) as tokens (B, H, W, d).

    patch: side in pixels of one token's image patch; channels: of the image; d = stack size * channels * patch^2, the
    features ordered (row in patch, column in patch, stack, channel). Tokens beyond the operator's image, which pad it
    to whole tokens, are not degraded: they see zeros. The back-projection is the operator's `back_project`, exact for
    all of ours. Gradients flow through H and H_pinv. All of it runs in float32 under any autocast: an inverse blur
    magnifies the rounding of what lies between H and H_pinv up to a hundredfold.
    """

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.channels = channels
        self.stack_size = width // (channels * patch**2)
        self.mix = Linear(self.stack_size + 1, self.stack_size, bias=True)

    def forward(self, x: Tensor, measurement: Measurement) -> Tensor:
        operator, y = measurement.operator, measurement.y
        with torch.autocast(x.device.type, enabled=False):
            features = self._to_images(x.float())
            height, width = operator.image_shape[1:]
            z = operator.H(features[..., :height, :width]).flatten(2)
            both = torch.cat((y.flatten(1).unsqueeze(1).to(z.dtype), z), dim=1)
            mixed = F.gelu(torch.matmul(self.mix.weight, both) + self.mix.bias[:, None])
            images = operator.back_project(mixed.view(*mixed.shape[:2], *operator.measurement_shape))
            beyond = (0, features.shape[-1] - width, 0, features.shape[-2] - height)
            return self._to_tokens(F.pad(images, beyond)).to(x.dtype)

    def _to_images(self, x: Tensor) -> Tensor:
        """(B, H, W, d) -> (B, stack, channels, H * patch, W * patch)."""
        (b, h, w, _), p, c, k = x.shape, self.patch, self.channels, self.stack_size
        return x.view(b, h, w, p, p, k, c).permute(0, 5, 6, 1, 3, 2, 4).reshape(b, k, c, h * p, w * p)

    def _to_tokens(self, images: Tensor) -> Tensor:
        """The inverse of `_to_images`."""
        (b, k, c, height, width), p = images.shape, self.patch
        h, w = height // p, width // p
        return images.reshape(b, k, c, h, p, w, p).permute(0, 3, 5, 4, 6, 1, 2).reshape(b, h, w, p * p * k * c)
