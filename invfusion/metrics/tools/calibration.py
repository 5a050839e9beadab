"""Whether posterior samples can be trusted: the truth must look like one more of them.

Everything rests on ranks. Of S samples of p(x | y) and the truth, which is a draw of p(x | y) too, any one number t(x)
(a pixel, a projection, the distance to a reference image) has a uniformly distributed rank. Too many ranks near 0 and 1
mean samples that vary too little; too many in the middle, too much; more on one side, a bias. Sources: Talts et al.
2018 (simulation-based calibration), Lemos et al. 2023 (TARP, which in the limit of many references is sufficient too).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from invfusion.codec import decode
from invfusion.errors import ShapeError
from invfusion.metrics.base import Weighted

# A pixel counts only where draws and truth together span more than two grey levels: chosen by both alike, so that the
# truth is one more draw also among the pixels that count.
AT_STAKE = 2.5 / 127.5


def ranks(samples: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """Of truth (B, *J) among samples (B, S, *J), as numbers in [0, 1], (B, *J) float64.

    (how many samples are smaller + u) / (S + 1) with u uniform: exactly uniform for calibrated samples, whatever S.
    Among samples equal to the truth (a visible pixel, say) the place is drawn.
    """
    if samples.ndim != truth.ndim + 1 or samples.shape[:1] + samples.shape[2:] != truth.shape or not samples.shape[1]:
        raise ShapeError(f"ranks need truth (B, *J) and samples (B, S, *J), got {truth.shape} and {samples.shape}")
    smaller = (samples < truth[:, None]).sum(1)
    equal = (samples == truth[:, None]).sum(1)
    u = torch.rand(truth.shape, generator=generator, dtype=torch.float64).to(truth.device)
    return (smaller + u * (equal + 1)) / (samples.shape[1] + 1)


def tarp_ranks(samples: Tensor, truth: Tensor, references: Tensor, generator: torch.Generator) -> Tensor:
    """Of the truth's distance to a reference among the samples' distances to it, (B,) float64.

    samples: (B, S, *X); truth, references: (B, *X); a reference must not depend on the truth of its own row.
    Source: TARP, Algorithm 1.
    """
    b = len(truth)
    of_samples, of_truth = _distances(
        samples.double().flatten(2), truth.double().reshape(b, -1), references.double().reshape(b, -1)
    )
    return ranks(of_samples, of_truth, generator)


def _distances(samples: Tensor, truth: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """To references (*B, J), of samples (*B, S, J) and truth (*B, J): (*B, S) and (*B)."""
    of_truth: Tensor = torch.linalg.vector_norm(truth - reference, dim=-1)
    return torch.cdist(reference.unsqueeze(-2), samples).squeeze(-2), of_truth


def projected(x: Tensor, directions: Tensor) -> Tensor:
    """Coordinates of x (B, *S, C, H, W) along each image's directions (B, J, C, H, W): (B, *S, J) float64."""
    b = len(x)
    flat = x.double().reshape(b, -1, directions[0, 0].numel())
    return (flat @ directions.double().flatten(2).mT).reshape(*x.shape[:-3], -1)


def coverage(uniform: Tensor, levels: Tensor) -> Tensor:
    """How often the central interval of each level (L,) holds the truth, (L,): the share of ranks within it."""
    return within(uniform, levels) / max(uniform.numel(), 1)


def within(uniform: Tensor, levels: Tensor) -> Tensor:
    """How many ranks lie in the central interval of each level (L,), (L,) long."""
    distance = (uniform.flatten().double() - 0.5).abs().sort().values
    return torch.searchsorted(distance, levels.double() / 2, right=True)


def cumulative(uniform: Tensor, levels: Tensor) -> Tensor:
    """The share of ranks up to each level (L,), (L,); the diagonal for calibrated samples."""
    values = uniform.flatten().double().sort().values
    return torch.searchsorted(values, levels.double(), right=True) / max(len(values), 1)


def uniformity_gap(uniform: Tensor, weights: Tensor | None = None) -> float:
    """The largest distance between the distribution function of ranks (N,) and the diagonal (Kolmogorov-Smirnov).

    In [0, 1]; about 0.87 / sqrt(N) for N independent ranks of calibrated samples. weights: (N,), how often each counts.
    """
    values, order = uniform.double().sort()
    w = torch.ones_like(values) if weights is None else weights.double()[order]
    after = w.cumsum(0) / w.sum()
    before = after - w / w.sum()
    return float(torch.maximum((after - values).abs(), (before - values).abs()).max())


def spread_and_error(samples: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The variance that the samples (B, S, *J) predict and the squared error of their mean: (B, *J) float64 each.

    For calibrated samples both have one expectation: the predicted variance counts the error of a mean of S samples in.
    """
    n = samples.shape[1]
    if n < 2:
        raise ShapeError(f"a spread needs at least 2 samples of each image, got {n}")
    values = samples.double()
    return values.var(dim=1) * (1 + 1 / n), (values.mean(dim=1) - truth.double()).square()


def tarp_of_draws(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """TARP's ranks (n,) of draws (n, S, C, H, W) and truth (n, C, H, W), uint8.

    The reference for an image is the truth of the one before it.
    """
    x = decode(truth)
    distances = [
        _distances(decode(own).double().flatten(1), true.double().flatten(), anchor.double().flatten())
        for own, true, anchor in zip(draws, x, x.roll(1, 0), strict=True)
    ]
    of_samples, of_truth = (torch.stack(part) for part in zip(*distances, strict=True))
    return ranks(of_samples, of_truth, generator)


def ranks_at_stake(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Image by image, which pixels (C, H, W) bool are uncertain, and the truth's ranks there; the same draws and truth.

    One image at a time, as a hundred large ones would take gigabytes.
    """
    # TARP's ranks are drawn first, so that all that is drawn stands in one order.
    torch.rand(len(truth), generator=generator, dtype=torch.float64)
    for own, true in zip(torch.split(draws, 1), torch.split(truth, 1), strict=True):
        found, uncertain = ranks(decode(own), decode(true), generator)[0], at_stake(own, true)[0]
        yield uncertain, found[uncertain]


def at_stake(draws: Tensor, truth: Tensor) -> Tensor:
    """Which pixels (n, C, H, W) bool of 8-bit images are uncertain at all; draws and truth as above."""
    least, most = torch.cat([decode(draws), decode(truth)[:, None]], 1).aminmax(dim=1)
    return most - least > AT_STAKE


def std_ratio(values: Tensor, _: Tensor | None = None) -> Weighted:
    """Predicted over actual deviation, of variances and squared errors (n, 2), as a function of weights."""
    return lambda weights, _: ((weights @ values[:, 0]) / (weights @ values[:, 1])).sqrt()
