"""Random camera-shake kernels after the law of the public `motionblur` library (L. Borodenko), with our own rasteriser.

A kernel of h x w pixels is drawn as a poly-line on a canvas of twice the size, whose diagonal d is the unit of length;
the canvas is blurred a little and reduced to half. Everything works on a batch; arithmetic of paths is float64.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# The law's constants: longest path per unit of d, Beta(1, STEP_BETA) steps, smallest freedom of steps and angles.
MAX_LENGTH = 0.75
STEP_BETA = 30
EPSILON = 0.1
# Beta(2, 20) is the law of the second smallest of 21 uniform numbers.
JITTER_ORDER = 21
STEPS_PER_ROUND = 128


class Paths(NamedTuple):
    """Vertices (B, N, 2) as (x, y) around zero; travelled distance (B, N); number of valid vertices (B,)."""

    points: Tensor
    distance: Tensor
    n_steps: Tensor


def motion_kernels(intensity: Tensor, h: int, w: int, generator: torch.Generator) -> Tensor:
    """Kernels (B, h, w), float32, non-negative, each summing to one, for intensities (B,) in [0, 1].

    The path's centre of mass lies at pixel (h//2, w//2).
    """
    diagonal = 2 * math.hypot(h, w)
    paths = sample_paths(intensity.double(), diagonal, generator)
    canvas = _rasterise(paths, h, w, width=max(1, math.floor(diagonal / 150)))
    return _normalised(_reduced(canvas, blur=math.floor(0.01 * diagonal)))


def smooth(kernels: Tensor, std: float) -> Tensor:
    """Kernels (B, h, w) smoothed by an isotropic Gaussian of `std` pixels within their support; sums stay one."""
    h, w = kernels.shape[-2:]
    return _normalised(_gaussian_matrix(h, std) @ kernels @ _gaussian_matrix(w, std).mT)


def sample_paths(intensity: Tensor, diagonal: float, generator: torch.Generator) -> Paths:
    """Random walks for intensities (B,), centred on their mean vertex and randomly rotated; units of the canvas."""
    steps, n_steps = _steps(intensity, diagonal, generator)
    heading = _headings(intensity, steps.shape[1], generator)
    valid = torch.arange(steps.shape[1]) < n_steps[:, None]
    z = torch.polar(steps, heading).cumsum(dim=1)
    z = z - (z * valid).sum(dim=1, keepdim=True) / n_steps[:, None]
    turn = math.pi * _rand(len(z), 1, generator=generator)
    z = z * torch.polar(torch.ones_like(turn), turn)
    return Paths(torch.view_as_real(z), steps.cumsum(dim=1), n_steps)


def _steps(intensity: Tensor, diagonal: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Step lengths (B, N) and how many of them reach the sample's path length.

    A step longer than the whole path is rejected in the law; inverting the truncated distribution does the same.
    """
    u = _rand(len(intensity), 2, generator=generator)
    length = MAX_LENGTH * diagonal * (u[:, :1] + u[:, 1:] * intensity[:, None] ** 2)
    scale = (1 - intensity[:, None] + EPSILON) * diagonal
    truncation = 1 - (1 - (length / scale).clamp(max=1)) ** STEP_BETA
    steps = torch.empty(len(intensity), 0, dtype=torch.float64)
    while steps.shape[1] == 0 or bool((steps.sum(dim=1, keepdim=True) < length).any()):
        u = _rand(len(intensity), STEPS_PER_ROUND, generator=generator)
        steps = torch.cat([steps, scale * (1 - (1 - truncation * u) ** (1 / STEP_BETA))], dim=1)
    return steps, 1 + (steps.cumsum(dim=1) < length).sum(dim=1)


def _headings(intensity: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Absolute headings (B, n): triangular sizes around the largest angle's share, signs that flip now and then."""
    b = len(intensity)
    jitter = _rand(b, JITTER_ORDER, generator=generator).sort(dim=1).values[:, 1:2]
    largest = math.pi * intensity[:, None] * _rand(b, 1, generator=generator)
    first = largest * (2 * _rand(b, 1, generator=generator) - 1)
    size = _triangular(_rand(b, n - 1, generator=generator), intensity[:, None] * largest, largest + EPSILON)
    flips = 1 - 2 * (_rand(b, n - 1, generator=generator) < jitter).double()
    return torch.cat([first, first.sign() * flips.cumprod(dim=1) * size], dim=1)


def _triangular(u: Tensor, mode: Tensor, right: Tensor) -> Tensor:
    """Inverse distribution function of the triangular law on [0, right]."""
    rising = (u * right * mode).sqrt()
    falling = right - ((1 - u) * right * (right - mode)).sqrt()
    return torch.where(u * right < mode, rising, falling)


def _rasterise(paths: Paths, h: int, w: int, width: int) -> Tensor:
    """Canvases (B, 2h, 2w) of zeros with ones along the paths, `width` pixels wide, clipped at the border."""
    points = _dense_points(paths)
    points = points - _way_back(points, h, w)[:, None]
    brush = torch.arange(width) - (width - 1) // 2
    column, row = (points + _centre(h, w)).floor().long().unbind(dim=-1)
    column = (column[..., None, None] + brush).expand(-1, -1, width, -1).flatten(1)
    row = (row[..., None, None] + brush[:, None]).expand(-1, -1, -1, width).flatten(1)
    inside = (column >= 0) & (column < 2 * w) & (row >= 0) & (row < 2 * h)
    canvas = torch.zeros(len(points), 2 * h * 2 * w)
    canvas.scatter_reduce_(1, (row * 2 * w + column).where(inside, 0), inside.float(), reduce="amax")
    return canvas.view(-1, 2 * h, 2 * w)


def _centre(h: int, w: int) -> Tensor:
    """Where the middle of pixel (h//2, w//2) lies on the canvas, as (x, y)."""
    return torch.tensor([2 * (w // 2) + 1, 2 * (h // 2) + 1], dtype=torch.float64)


def _way_back(points: Tensor, h: int, w: int) -> Tensor:
    """(B, 2): zero, but for paths that miss an elongated canvas their point nearest to the centre."""
    at = points + _centre(h, w)
    inside = ((at >= 0) & (at < torch.tensor([2 * w, 2 * h]))).all(dim=-1)
    nearest = points[torch.arange(len(points)), points.square().sum(dim=-1).argmin(dim=1)]
    return nearest * ~inside.any(dim=1, keepdim=True)


def _dense_points(paths: Paths) -> Tensor:
    """Points (B, P, 2) along each poly-line, half a pixel apart; shorter paths repeat their last vertex."""
    last = (paths.n_steps - 1)[:, None]
    start, end = paths.distance[:, :1], paths.distance.gather(1, last)
    count = 2 + int(((end - start).max() / 0.5).floor())
    travelled = torch.minimum(start + 0.5 * torch.arange(count), end)
    right = torch.searchsorted(paths.distance, travelled).clamp(min=1).minimum(last)
    left = right - 1
    d0, d1 = paths.distance.gather(1, left), paths.distance.gather(1, right)
    share = ((travelled - d0) / (d1 - d0)).clamp(0, 1)[..., None]
    p0, p1 = (paths.points.gather(1, i[..., None].expand(-1, -1, 2)) for i in (left, right))
    return p0 + share * (p1 - p0)


def _reduced(canvas: Tensor, blur: float) -> Tensor:
    """Half the size, (B, h, w): Gaussian blur and Lanczos reduction; overshoot is clipped to [0, 1]."""
    h, w = canvas.shape[-2] // 2, canvas.shape[-1] // 2
    rows, columns = _reduction_matrix(h, blur), _reduction_matrix(w, blur)
    return (rows @ canvas @ columns.mT).clamp(0, 1)


@lru_cache(maxsize=32)
def _reduction_matrix(n: int, blur: float) -> Tensor:
    """(n, 2n): Gaussian blur of std `blur`, then 2x reduction by the Lanczos-3 filter; weights sum to one per row."""
    centres = 2 * torch.arange(n, dtype=torch.float64)[:, None] + 0.5
    offset = (torch.arange(2 * n, dtype=torch.float64) - centres) / 2
    lanczos = torch.sinc(offset) * torch.sinc(offset / 3) * (offset.abs() < 3)
    reduction = lanczos / lanczos.sum(dim=1, keepdim=True)
    return reduction.float() if blur == 0 else reduction.float() @ _gaussian_matrix(2 * n, blur)


@lru_cache(maxsize=32)
def _gaussian_matrix(n: int, std: float) -> Tensor:
    """(n, n): convolution with a sampled Gaussian of `std` pixels, zeros beyond the border."""
    grid = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * ((grid[:, None] - grid) / std) ** 2)
    return (weights / (std * math.sqrt(2 * math.pi))).float()


def _normalised(kernels: Tensor) -> Tensor:
    return kernels / kernels.sum(dim=(-2, -1), keepdim=True)


def _rand(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)
