"""The trunk: an hourglass of transformer levels with InvFusion blocks. Source: HDiT; paper section 3, appendix A.1."""

import math
from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from invfusion.models.attention import Grid, attend, check_backend
from invfusion.models.config import DenoiserConfig
from invfusion.models.feature_degradation import FeatureDegradation
from invfusion.models.layers import (
    EPSILON,
    AdaRMSNorm,
    ClassEmbedding,
    FeedForward,
    FourierFeatures,
    Initialised,
    Linear,
    Mapping,
    RMSNorm,
    TokenMerge,
    TokenSplit,
    depth_to_space,
    space_to_depth,
)
from invfusion.operators.base import Measurement

AUGMENT_LABELS = 9


class Rotation(NamedTuple):
    """Cosines and sines of the rotary positions of a token grid, (H, W, heads, n_rotated / 2)."""

    cos: Tensor
    sin: Tensor


def axial_positions(grid: Grid, trained_reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres of the cells of a grid: rows (H,) and columns (W,); `trained_reach` cells span [-1, 1], cells are square.

    The pitch is that of training at every size, so that two tokens see each other's distance as they learned it.
    """
    rows, columns = ((2 * torch.arange(n, device=device) + 1 - n) / trained_reach for n in grid)
    return rows, columns


class AxialRope(Initialised):
    """Rotary position embedding over rows and columns; half of each head's features are rotated."""

    frequencies: Tensor

    def __init__(self, n_heads: int, head_dim: int, trained_reach: int) -> None:
        super().__init__()
        self.trained_reach = trained_reach
        self.register_buffer("frequencies", torch.empty(n_heads, head_dim // 8))

    def initialise(self, generator: Generator) -> None:  # noqa: ARG002 - fixed numbers need no draw
        n_heads, n = self.frequencies.shape
        exponents = torch.arange(n_heads * n).view(n, n_heads).T / (n_heads * n)
        self.frequencies.copy_(math.pi * 10**exponents)

    @torch.no_grad()
    def forward(self, grid: Grid) -> Rotation:
        rows, columns = axial_positions(grid, self.trained_reach, self.frequencies.device)
        by_row = rows[:, None, None, None] * self.frequencies
        by_column = columns[None, :, None, None] * self.frequencies
        shape = (*grid, *self.frequencies.shape)
        angles = torch.cat((by_row.expand(shape), by_column.expand(shape)), dim=-1)
        return Rotation(angles.cos(), angles.sin())


def cosine_rotate(x: Tensor, scale: Tensor, rotation: Rotation) -> Tensor:
    """Scale each head's vector of (..., H, W, heads, e) to the length sqrt(scale), then rotate it by its position.

    Feature m of the first quarter rotates with feature m + e/4; the second half stays. Computed in float32.
    """
    full = x.float()
    factor = ((torch.linalg.vecdot(full, full) + EPSILON).rsqrt() * scale.sqrt()).unsqueeze(-1)
    a, b, rest = (x * factor).split((x.shape[-1] // 4, x.shape[-1] // 4, x.shape[-1] // 2), dim=-1)
    cos, sin = rotation
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


class SelfAttention(Initialised):
    """Pre-norm residual attention of tokens (B, H, W, d) with cosine similarity and a learned scale per head.

    On grids larger than those of training, a global level sees a window as large as a training image.
    """

    def __init__(self, config: DenoiserConfig, index: int) -> None:
        super().__init__()
        level, trained_reach = config.levels[index], config.trained_reach(index)
        d = level.width
        self.kernel = trained_reach if level.kernel == "global" else level.kernel
        self.head_dim = config.head_dim
        self.attention_backend = "auto"
        self.norm = AdaRMSNorm(d, config.mapping_width)
        self.qkv = Linear(d, 3 * d)
        self.scale = nn.Parameter(torch.empty(d // config.head_dim))
        self.rope = AxialRope(d // config.head_dim, config.head_dim, trained_reach)
        self.dropout = nn.Dropout(config.dropout)
        self.out = Linear(d, d, zero=True)

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:  # noqa: ARG002 - a constant needs no draw
        self.scale.fill_(10)

    def forward(self, x: Tensor, cond: Tensor, rotation: Rotation) -> Tensor:
        q, k, v = self._heads(self.qkv(self.norm(x, cond)), 3)
        return x + self._attend(q, k.unsqueeze(1), v.unsqueeze(1), rotation)

    def _heads(self, features: Tensor, n: int) -> tuple[Tensor, ...]:
        """(B, H, W, n * d) -> n times (B, H, W, heads, e)."""
        return features.view(*features.shape[:-1], n, -1, self.head_dim).unbind(3)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, rotation: Rotation) -> Tensor:
        """Queries (B, H, W, heads, e) over keys and values (B, S, H, W, heads, e), projected to (B, H, W, d)."""
        q, k = cosine_rotate(q, self.scale, rotation), cosine_rotate(k, self.scale, rotation)
        o = attend(q, k, v, self.kernel, self.attention_backend)
        out: Tensor = self.out(self.dropout(o.flatten(-2)))
        return out


def set_attention_backend(model: nn.Module, name: str) -> None:
    """Fix the backend of every attention block of a model; "auto" chooses by capability. Raises `ConfigError`."""
    check_backend(name)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention_backend = name


class JointAttention(SelfAttention):
    """Attention of tokens (B, H, W, d) whose softmax also runs over keys and values made from the degraded features:
    the InvFusion block (paper, section 3).
    """

    def __init__(self, config: DenoiserConfig, index: int) -> None:
        super().__init__(config, index)
        d = config.levels[index].width
        damping = config.sigma_data**2 if config.knows_noise_level else None
        self.degradation = FeatureDegradation(d, config.patch_at(index), config.channels, damping)
        self.degradation_norm = AdaRMSNorm(d, config.mapping_width)
        self.degradation_key = Linear(2 * d, d)
        self.degradation_value = Linear(d, d)

    def forward(  # type: ignore[override]
        self, x: Tensor, cond: Tensor, rotation: Rotation, degraded: Tensor | None
    ) -> Tensor:
        """degraded: what `degradation` makes of x; None where there is no measurement."""
        xn = self.norm(x, cond)
        q, k, v = self._heads(self.qkv(xn), 3)
        dk, dv = self._sink(xn) if degraded is None else self._degraded(xn, cond, degraded)
        keys = torch.stack((k, self._heads(dk, 1)[0]), dim=1)
        values = torch.stack((v, self._heads(dv, 1)[0]), dim=1)
        return x + self._attend(q, keys, values, rotation)

    def _degraded(self, xn: Tensor, cond: Tensor, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, W, d) from the degraded features."""
        yn = self.degradation_norm(self.degradation.to_tokens(degraded).to(xn.dtype), cond)
        return self.degradation_key(torch.cat((xn, yn), dim=-1)), self.degradation_value(yn)

    def _sink(self, xn: Tensor) -> tuple[Tensor, Tensor]:
        """What `_degraded` gives where the degraded features are zero: keys that draw attention to zero values.

        The zero is made of the parameters that have no part in it, so that each receives a gradient, zero, as
        data-parallel training needs.
        """
        idle = (*self.degradation.parameters(), *self.degradation_norm.parameters(), self.degradation_value.weight)
        zero = 0.0 * torch.stack([p.sum().float() for p in idle]).sum()
        keys = F.linear(xn, self.degradation_key.weight[:, : xn.shape[-1]])
        return keys, zero.to(keys.dtype).expand_as(keys)


class Layer(nn.Module):
    """An attention block, then a feed-forward block, on tokens (B, H, W, d)."""

    # Whether the backward pass computes the activations again instead of keeping them: see `activations`.
    recomputes = False

    def __init__(self, config: DenoiserConfig, index: int) -> None:
        super().__init__()
        attention = JointAttention if config.has_invfusion_blocks(index) else SelfAttention
        self.attention = attention(config, index)
        width = config.levels[index].width
        self.feed_forward = FeedForward(width, config.feed_forward_factor, config.mapping_width, config.dropout)

    def forward(self, x: Tensor, cond: Tensor, rotation: Rotation, measurement: Measurement | None) -> Tensor:
        if isinstance(self.attention, JointAttention):
            degraded = None if measurement is None else self.attention.degradation(x, measurement)
            x = self.attention(x, cond, rotation, degraded)
        else:
            x = self.attention(x, cond, rotation)
        out: Tensor = self.feed_forward(x, cond)
        return out


class Level(nn.ModuleList):
    """The layers of one way through one resolution, on tokens (B, H, W, d)."""

    def __init__(self, config: DenoiserConfig, index: int) -> None:
        super().__init__(Layer(config, index) for _ in range(config.levels[index].depth))

    def forward(self, x: Tensor, cond: Tensor, measurement: Measurement | None) -> Tensor:
        # All layers of a level have the same frequencies, so one table serves them all.
        rotation = cast(Layer, self[0]).attention.rope((x.shape[1], x.shape[2]))
        for layer in self:
            if layer.recomputes and self.training:
                x = checkpoint(layer, x, cond, rotation, measurement, use_reentrant=False)
            else:
                x = layer(x, cond, rotation, measurement)
        return x


# Noise of measurements below this level, half a grey level, is none.
LEAST_SIGMA_Y = 0.004


class Conditioning(nn.Module):
    """Noise levels, augmentation labels and class -> conditioning vector (B or 1, mapping_width). Runs in float32."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.mapping_width
        self.n_classes = config.n_classes
        self.time_features = FourierFeatures(1, width)
        self.time_proj = Linear(width, width)
        self.augment_features = FourierFeatures(AUGMENT_LABELS, width)
        self.augment_proj = Linear(width, width)
        self.class_embedding = ClassEmbedding(config.n_classes + 1, width) if config.n_classes else None
        self.mapping = Mapping(width, config.mapping_depth, config.mapping_hidden)
        if config.knows_noise_level:
            self.sigma_y_features = FourierFeatures(1, width)
            self.sigma_y_proj = Linear(width, width, zero=True)
        self.knows_noise_level = config.knows_noise_level

    def forward(
        self,
        noise: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None,
        sigma_y: Tensor | None = None,
    ) -> Tensor:
        """noise: ln sigma / 4, (B,) or (1,); sigma_y: (B,), None where nothing is measured."""
        with torch.autocast(noise.device.type, enabled=False):
            if augment_labels is None:
                augment_labels = noise.new_zeros(1, AUGMENT_LABELS)
            total = self.time_proj(self.time_features(noise[:, None]))
            total = total + self.augment_proj(self.augment_features(augment_labels.float()))
            if self.class_embedding is not None:
                if class_labels is None:
                    class_labels = torch.full((1,), self.n_classes, device=noise.device)
                total = total + self.class_embedding(class_labels)
            if self.knows_noise_level:
                level = noise.new_zeros(1) if sigma_y is None else sigma_y.float()
                level = level.clamp(min=LEAST_SIGMA_Y).log()[:, None] / 4
                total = total + self.sigma_y_proj(self.sigma_y_features(level))
            cond: Tensor = self.mapping(total)
            return cond


class HDiT(nn.Module):
    """The raw network F: images (B, in_channels, H, W) -> images (B, out_channels, H, W)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        *outer, middle = range(len(config.levels))
        widths = [level.width for level in config.levels]
        self.patch_size = config.patch_size
        self.patch_in = Linear(config.in_channels * config.patch_size**2, widths[0])
        self.conditioning = Conditioning(config)
        self.down = nn.ModuleList(Level(config, i) for i in outer)
        self.merges = nn.ModuleList(TokenMerge(widths[i], widths[i + 1]) for i in outer)
        self.middle = Level(config, middle)
        self.splits = nn.ModuleList(TokenSplit(widths[i + 1], widths[i]) for i in outer)
        self.up = nn.ModuleList(Level(config, i) for i in outer)
        self.out_norm = RMSNorm(widths[0])
        self.patch_out = PatchOut(config)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        measurement: Measurement | None,
        class_labels: Tensor | None,
        augment_labels: Tensor | None,
    ) -> Tensor:
        """`measurement` None means that there is nothing to see: the degraded features are zero."""
        sigma_y = None if measurement is None else measurement.sigma_y
        cond = self.conditioning(noise, class_labels, augment_labels, sigma_y)
        x = self.patch_in(space_to_depth(x.permute(0, 2, 3, 1).contiguous(), self.patch_size))
        skips = []
        for level, merge in zip(self.down, self.merges, strict=True):
            x = level(x, cond, measurement)
            skips.append(x)
            x = merge(x)
        x = self.middle(x, cond, measurement)
        for level, split, skip in reversed(list(zip(self.up, self.splits, skips, strict=True))):
            x = level(split(x, skip), cond, measurement)
        x = self.patch_out(self.out_norm(x))
        return depth_to_space(x, self.patch_size).permute(0, 3, 1, 2)


class PatchOut(Linear):
    """Tokens to patches (row, column, channel): the image starts at zero, NPPC's directions slightly off zero."""

    COMPONENT_STD = 1e-2

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config.levels[0].width, config.out_channels * config.patch_size**2, zero=True)
        self.image_channels = config.channels
        self.out_channels = config.out_channels

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        super().initialise(generator)
        self.by_channel()[:, self.image_channels :].normal_(std=self.COMPONENT_STD, generator=generator)

    def by_channel(self) -> Tensor:
        """The weights as a view (patch^2, out_channels, width)."""
        return self.weight.view(-1, self.out_channels, self.in_features)
