"""What every metric declares, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from invfusion.errors import ShapeError

# What a metric may need of a set of restorations, besides the images themselves; see `Restorations`.
Need = Literal["truth", "samples", "residual", "projected", "forecast", "draws", "components"]

Network = TypeVar("Network")
# How often each image counts (R, n), and each of the reference's (R, m) or None for once, float64 -> R numbers (R,).
Weighted = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Networks:
    """The pretrained networks of metrics: the folder of their weight files, the images' size, and a device.

    image_size: None where it need not be checked.
    """

    weights: Path = Path("weights")
    image_size: int | None = None
    device: str = "cpu"

    def load(self, loader: "Callable[[Networks], Network]") -> Network:
        """The network that a loader makes, made once.

        Raises:
            WeightsUnavailableError: a weight file or a package is missing.
        """
        return _loaded(loader, self)  # type: ignore[no-any-return]


@cache
def _loaded(loader: Callable[[Networks], Any], networks: Networks) -> Any:
    return loader(networks)


@dataclass(frozen=True, kw_only=True)
class Restorations:
    """n restored images, and what else metrics need of them; None for what there is not.

    images: uint8 (n, C, H, W), the first draw of each. truth: what was measured, likewise.
    residual: (n,) float64, the sum over measurement entries of (Hx - y)^2 of the float images, neither clipped nor
    quantised; n_measured: (n,) long, how many entries that are.
    projected: uint8 (n, C, H, W), images made consistent with their measurement before they were quantised.
    draws: uint8 (n, S, C, H, W), repeated draws; S = 1 for a point estimate, whose forecast is that one image.
    mean: (n, C, H, W) float32, components: (n, K, C, H, W) orthonormal, stds: (n, K), of a posterior.
    random: makes the generator of what a metric draws, the same for every method on one set of measurements.
    """

    images: Tensor
    truth: Tensor | None = None
    residual: Tensor | None = None
    n_measured: Tensor | None = None
    projected: Tensor | None = None
    draws: Tensor | None = None
    mean: Tensor | None = None
    components: Tensor | None = None
    stds: Tensor | None = None
    networks: Networks = Networks()
    random: Callable[[], torch.Generator] = torch.Generator

    def need(self, name: str) -> Tensor:
        """One of the tensors above. Raises `ShapeError` where there is none."""
        found: Tensor | None = getattr(self, name)
        if found is None:
            raise ShapeError(f"the metric needs '{name}', which these restorations do not have")
        return found


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: one object in one file, from which records, tables, claims, tuning and tracking read what it is.

    name: in records. label, unit: as people read it. better: "higher", "lower", or the value that is best.
    needs: what it reads of `Restorations` besides the images: "truth"; "samples", images that follow a distribution (a
    posterior mean does not); "residual"; "projected"; "components"; "draws", at least two of each image; "forecast",
    draws, or of a point estimate its one image.
    values: (n, ...) float, one row per image. Without a `statistic` they are (n,), and their mean is reported; else
    `statistic(values, reference)` is the number as a function of how often each image counts, see `Weighted`.
    reference: features of true images uint8 (N, C, H, W), (N, d), to which a statistic compares.
    against_others: whether these are other images than those that were restored, which would favour restorations: of
    these, as of what is held out, the score of real images can be told too. nonnegative: whether it is a distance, so
    that its interval does not go below 0.
    source: names what `values` computes; metrics of one source and module share their values.
    loader: makes the network that the metric needs, or says why it cannot; weights: the name of its file.
    ceiling: the value with which an infinite one counts, given an image shape.
    calibration: where it says whether stated uncertainty can be trusted, how: "ratio", of predicted over actual
    deviations, or "gap", the distance from what calibrated draws give.
    main: whether it belongs into the main tables. stand_in: the metric that takes its place there without weights.
    scale, decimals: a shown value is scale * value, to so many decimals; about three significant digits where None.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] | float
    needs: frozenset[Need]
    values: Callable[[Restorations], Tensor]
    statistic: Callable[[Tensor, Tensor | None], Weighted] | None = None
    reference: Callable[[Tensor, Networks], Tensor] | None = None
    against_others: bool = False
    nonnegative: bool = False
    source: str = ""
    loader: Callable[[Networks], Any] | None = None
    weights: str = ""
    ceiling: Callable[[tuple[int, ...]], float] | None = None
    unit: str = ""
    calibration: Literal["ratio", "gap"] | None = None
    main: bool = False
    stand_in: str | None = None
    scale: float = 1.0
    decimals: int | None = None

    @property
    def judges_draws(self) -> bool:
        """Whether it is computed of repeated draws of an image, or of a point estimate in their place."""
        return not self.needs.isdisjoint({"draws", "forecast"})

    @property
    def arrow(self) -> str:
        """Which way is better, as a sign: ↑, ↓, or → and the value that is best."""
        return {"higher": "↑", "lower": "↓"}.get(str(self.better)) or f"→{self.better:g}"

    def merit(self, value: float) -> float:
        """How good a value is: the larger, the better, whatever the metric's direction."""
        if self.better == "higher":
            return value
        return -value if self.better == "lower" else -abs(value - float(self.better))

    def show(self, value: float) -> str:
        """A value as it is written in tables."""
        scaled = self.scale * value
        return short(scaled) if self.decimals is None else f"{scaled:.{self.decimals}f}"

    def weighted(self, values: Tensor, reference: Tensor | None = None) -> Weighted:
        """The metric of values (n, ...) as a function of how often each image counts."""
        if self.statistic is not None:
            return self.statistic(values, reference)
        return lambda weights, _: weights @ values.double() / weights.sum(1)

    def number(self, values: Tensor, reference: Tensor | None = None) -> float:
        """The metric of values (n, ...), each image counted once."""
        once = torch.ones(1, len(values), dtype=torch.float64, device=values.device)
        return float(self.weighted(values, reference)(once, None))

    def capped(self, values: Tensor, image_shape: tuple[int, ...]) -> Tensor:
        """Values (any shape) with the ceiling in place of infinite ones."""
        return values if self.ceiling is None else values.clamp(max=self.ceiling(image_shape))


def short(value: float) -> str:
    """About three significant digits, at most three of them behind the point: 1234, 12.3, 1.23, 0.012, <0.001."""
    if 0 < abs(value) < 1e-3:
        return "<0.001"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 3
    return f"{value:.{digits}f}" if value else "0"
