"""The building blocks of the transformer. Source: Hourglass Diffusion Transformer (HDiT), paper appendix A.1.

Every block draws its initial weights from an explicit generator in `initialise`, never from global random state.
Statistics of norms are computed in float32; everything else runs in the dtype of its input or of the autocast.
Token grids are (B, H, W, features).
"""

import math
from abc import ABC, abstractmethod

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6


class Initialised(nn.Module, ABC):
    """A module whose own parameters and buffers are drawn from a generator."""

    @abstractmethod
    def initialise(self, generator: Generator) -> None:
        """Fill the module's own tensors in place."""


class Linear(nn.Linear, Initialised):
    """A linear map with PyTorch's default law of initial weights, or with zeros."""

    def __init__(self, n_in: int, n_out: int, bias: bool = False, zero: bool = False) -> None:
        self.zero = zero
        super().__init__(n_in, n_out, bias=bias)

    def reset_parameters(self) -> None:
        """Nothing: `initialise` draws the weights."""

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        bound = 0.0 if self.zero else 1 / math.sqrt(self.in_features)
        for parameter in self.parameters(recurse=False):
            parameter.uniform_(-bound, bound, generator=generator)


class ClassEmbedding(nn.Embedding, Initialised):
    """One vector per class, and a last one for "no class". Initially standard normal."""

    def reset_parameters(self) -> None:
        """Nothing: `initialise` draws the weights."""

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:
        self.weight.normal_(generator=generator)


class FourierFeatures(Initialised):
    """(B, n) numbers -> (B, width) cosines and sines of fixed random projections, float32."""

    weight: Tensor

    def __init__(self, n_in: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(width // 2, n_in))

    def initialise(self, generator: Generator) -> None:
        self.weight.normal_(generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x @ self.weight.T
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


def inverse_rms(x: Tensor) -> Tensor:
    """(..., d) -> (..., 1): 1 / sqrt(mean x^2 + 1e-6) over the last axis; float32."""
    full = x.float()
    inverse: Tensor = (torch.linalg.vecdot(full, full).unsqueeze(-1) / x.shape[-1] + EPSILON).rsqrt()
    return inverse


def rms_normalise(x: Tensor, scale: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + 1e-6) * scale over the last axis of (..., d); statistics in float32."""
    return x * (inverse_rms(x) * scale).to(x.dtype)


class RMSNorm(Initialised):
    """Root-mean-square norm of (..., d) with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:  # noqa: ARG002 - ones need no draw
        self.scale.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return rms_normalise(x, self.scale)


class AdaRMSNorm(nn.Module):
    """Root-mean-square norm of tokens (B, H, W, d) whose scale 1 + W cond depends on the conditioning (B or 1, c)."""

    def __init__(self, width: int, cond_width: int) -> None:
        super().__init__()
        self.linear = Linear(cond_width, width, zero=True)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return rms_normalise(x, 1 + self.linear(cond)[:, None, None, :])


class GEGLU(nn.Module):
    """Linear maps up and down, of (..., d), around a gated GELU: a feed-forward block's content; zero at the start."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(width, 2 * hidden)
        self.down = Linear(hidden, width, zero=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        down: Tensor = self.down(self.dropout(value * F.gelu(gate)))
        return down


class FeedForward(nn.Module):
    """Pre-norm residual feed-forward block of tokens (B, H, W, d)."""

    def __init__(self, width: int, factor: int, cond_width: int, dropout: float) -> None:
        super().__init__()
        self.norm = AdaRMSNorm(width, cond_width)
        self.body = GEGLU(width, factor * width, dropout)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        out: Tensor = x + self.body(self.norm(x, cond))
        return out


class MappingBlock(nn.Module):
    """Pre-norm residual feed-forward block of the mapping network, (B, c)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.body = GEGLU(width, hidden, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(self.norm(x))
        return out


class Mapping(nn.Module):
    """The network that turns the sum of all embeddings (B, c) into the conditioning vector (B, c)."""

    def __init__(self, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.in_norm = RMSNorm(width)
        self.blocks = nn.Sequential(*(MappingBlock(width, hidden) for _ in range(depth)))
        self.out_norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out_norm(self.blocks(self.in_norm(x)))
        return out


def space_to_depth(x: Tensor, p: int) -> Tensor:
    """(B, H, W, d) -> (B, H/p, W/p, p*p*d), features ordered (row in patch, column in patch, d)."""
    return rearrange(x, "b (h p) (w q) d -> b h w (p q d)", p=p, q=p)


def depth_to_space(x: Tensor, p: int) -> Tensor:
    """(B, H, W, p*p*d) -> (B, H*p, W*p, d), the inverse of `space_to_depth`."""
    return rearrange(x, "b h w (p q d) -> b (h p) (w q) d", p=p, q=p)


class TokenMerge(nn.Module):
    """Each 2x2 block of tokens becomes one of the next level: (B, H, W, d) -> (B, H/2, W/2, d')."""

    def __init__(self, width: int, width_below: int) -> None:
        super().__init__()
        self.proj = Linear(4 * width, width_below)

    def forward(self, x: Tensor) -> Tensor:
        merged: Tensor = self.proj(space_to_depth(x, 2))
        return merged


class TokenSplit(Initialised):
    """Each token becomes 2x2 tokens, (B, H, W, d) -> (B, 2H, 2W, d'), blended with the skip connection by one learned
    factor (initially a half).
    """

    def __init__(self, width_below: int, width: int) -> None:
        super().__init__()
        self.proj = Linear(width_below, 4 * width)
        self.factor = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def initialise(self, generator: Generator) -> None:  # noqa: ARG002 - a constant needs no draw
        self.factor.fill_(0.5)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = depth_to_space(self.proj(x), 2)
        return torch.lerp(skip, up.to(skip.dtype), self.factor.to(skip.dtype))
