"""Trained filters for noisy photographs: what the Gaussian estimate of them misses.

To the Gaussian estimate of each pixel a linear combination of its neighbourhood is added, of the estimate and of what y
says beyond it. The weights were learned by least squares, for each noise level and kind of neighbourhood (direction,
strength and coherence of its edges). Source: Romano, Isidoro & Milanfar 2017 (RAISR); Getreuer et al. 2018 (BLADE).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from invfusion.errors import CheckpointError

FILE = Path(__file__).with_name("photos_noise.safetensors")
# Bins of the edges' direction, and of strength and coherence by quantiles of the photographs learned from.
ANGLES, STRENGTHS, COHERENCES = 8, 4, 3
KINDS = ANGLES * STRENGTHS * COHERENCES
# Sides of the neighbourhoods, of the estimate and of what y says beyond it; pixels that both need around an image.
REACH, REACH_OF_GAP = 7, 5
HALO = REACH // 2
# Standard deviation in pixels of the window in which edges are looked for.
WINDOW = 1.5
# Learning: so many pixels' weight pulls the filters of a kind towards those of all, and these towards zero.
COMMON, RIDGE = 200.0, 1e-4
# Rows that are filtered at once, which bounds the memory.
STRIP = 128


class Edges(NamedTuple):
    """Direction in [0, 1), strength, and coherence in [0, 1] of the edges at each pixel; (B, H, W) each."""

    angle: Tensor
    strength: Tensor
    coherence: Tensor


@dataclass(frozen=True)
class Filters:
    """Of one noise level. weights: (C, KINDS, n), for each of C planes; strengths, coherences: edges of the bins."""

    weights: Tensor
    strengths: Tensor
    coherences: Tensor

    def correction(self, estimate: Tensor, gap: Tensor) -> Tensor:
        """What is to be added to planes (B, C, H, W), the first of them luminance; C may be 1."""
        kinds = self._kinds(edges(estimate[:, 0]))
        corrected = torch.empty_like(estimate)
        for k in range(estimate.shape[1]):
            for rows, near in strips(estimate[:, k], gap[:, k]):
                corrected[:, k, rows] = self._filtered(k, kinds[:, rows], near).view(kinds[:, rows].shape)
        return corrected

    def _kinds(self, found: Edges) -> Tensor:
        angle = ((found.angle + 0.5 / ANGLES) % 1 * ANGLES).long().clamp(max=ANGLES - 1)
        strength = torch.bucketize(found.strength, self.strengths)
        return (angle * STRENGTHS + strength) * COHERENCES + torch.bucketize(found.coherence, self.coherences)

    def _filtered(self, k: int, kinds: Tensor, near: Tensor) -> Tensor:
        out = near.new_empty(len(near))
        for kind, rows in enumerate(of_each(kinds)):
            out[rows] = near[rows] @ self.weights[k, kind]
        return out

    @classmethod
    def learned(cls, estimate: Tensor, gap: Tensor, truth: Tensor) -> "Filters":
        """The best filters for planes (B, C, H, W), whose truth is known."""
        found = edges(estimate[:, 0])
        unweighted = torch.empty(0)
        filters = cls(unweighted, _bins(found.strength, STRENGTHS), _bins(found.coherence, COHERENCES))
        kinds = filters._kinds(found)
        planes = [
            _least_squares(kinds, near, (truth - estimate)[:, k].reshape(-1))
            for k in range(estimate.shape[1])
            for _, near in strips(estimate[:, k], gap[:, k], estimate.shape[2])
        ]
        return cls(torch.stack(planes), filters.strengths, filters.coherences)


def edges(plane: Tensor) -> Edges:
    """Of planes (B, H, W), by the structure tensor. Source: Bigun & Granlund 1987."""
    padded = F.pad(plane[:, None], (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    xx, yy, xy = (_smoothed(product)[:, 0] for product in (dx * dx, dy * dy, dx * dy))
    root = ((xx - yy).square() + 4 * xy.square()).sqrt()
    large, small = (((xx + yy + sign * root) / 2).clamp(min=0).sqrt() for sign in (1, -1))
    angle = (torch.atan2(2 * xy, xx - yy) / (2 * torch.pi)) % 1
    return Edges(angle, large, (large - small) / (large + small).clamp(min=1e-6))


def _smoothed(x: Tensor) -> Tensor:
    n = round(3 * WINDOW)
    line = torch.exp(-torch.arange(-n, n + 1, dtype=x.dtype, device=x.device).square() / (2 * WINDOW**2))
    line = line / line.sum()
    x = F.conv2d(F.pad(x, (n, n, 0, 0), mode="replicate"), line.view(1, 1, 1, -1))
    return F.conv2d(F.pad(x, (0, 0, n, n), mode="replicate"), line.view(1, 1, -1, 1))


def strips(estimate: Tensor, gap: Tensor, height: int = STRIP) -> Iterator[tuple[slice, Tensor]]:
    """Of planes (B, H, W), rows at a time and the neighbourhoods of their pixels, (B * rows * W, n)."""
    inset = (REACH - REACH_OF_GAP) // 2
    middle = REACH * REACH // 2
    wide, said = (F.pad(p[:, None], (HALO,) * 4, mode="replicate") for p in (estimate, gap))
    for top in range(0, estimate.shape[1], height):
        bottom = min(top + height, estimate.shape[1])
        near = F.unfold(wide[..., top : bottom + 2 * HALO, :], REACH)
        # Differences from the pixel itself, and in its own place a constant, for the mean of what is missed.
        near = near - near[:, middle : middle + 1]
        near[:, middle] = 0.1
        rows, columns = slice(top + inset, bottom + 2 * HALO - inset), slice(inset, said.shape[-1] - inset)
        beyond = F.unfold(said[..., rows, columns], REACH_OF_GAP)
        yield slice(top, bottom), torch.cat((near, beyond), 1).transpose(1, 2).flatten(0, 1)


def of_each(kinds: Tensor) -> Iterator[Tensor]:
    """Of kinds (B, H, W), the numbers (n,) of the pixels of each kind, in order."""
    flat = kinds.reshape(-1)
    yield from torch.split(flat.argsort(), torch.bincount(flat, minlength=KINDS).tolist())


def _bins(values: Tensor, n: int) -> Tensor:
    """Edges (n - 1,) between n bins of equally many values."""
    flat = values.flatten()
    return torch.quantile(flat[:: max(1, len(flat) // 2**20)], torch.linspace(0, 1, n + 1)[1:-1])


def _least_squares(kinds: Tensor, near: Tensor, missed: Tensor) -> Tensor:
    """Weights (KINDS, n) that tell what is missed (N,) from neighbourhoods (N, n)."""
    own = [(near[rows].T @ near[rows], near[rows].T @ missed[rows]) for rows in of_each(kinds)]
    squares, products = (torch.stack(parts).double() for parts in zip(*own, strict=True))
    mean = squares.sum(0) / len(near)
    ridge = RIDGE * mean.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype)
    common = torch.linalg.solve(mean + ridge, products.sum(0) / len(near))
    pull = COMMON * (mean + ridge)
    weights: Tensor = torch.linalg.solve(squares + pull, products + pull @ common).float()
    return weights


class Ladder:
    """Filters of noise levels of equal ratios. tensors: as `photos_noise.safetensors` holds them."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.levels = tensors["levels"].float()
        names = ("weights", "strengths", "coherences")
        rows = zip(*(tensors[name].float() for name in names), strict=True)
        self.filters = [Filters(*row) for row in rows]

    def correction(self, estimate: Tensor, gap: Tensor, level: float) -> Tensor:
        """As `Filters.correction` of (B, C, H, W), between the two nearest levels; less and less below the lowest."""
        total, step = torch.zeros_like(estimate), math.log(self.levels[1] / self.levels[0])
        for own, filters in zip(self.levels.tolist(), self.filters, strict=True):
            share = 1 - abs(math.log(min(level, float(self.levels[-1])) / own)) / step
            if share > 0:
                total += share * filters.correction(estimate, gap)
        return total


@cache
def load_filters() -> Ladder:
    """The shipped ones. Raises `CheckpointError` where their file is missing or damaged."""
    try:
        return Ladder(load_file(FILE))
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(f"{FILE}: cannot be read ({error}); install invfusion again") from error
