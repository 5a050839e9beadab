"""Frechet distance over pixels averaged to 8x8: what can be computed without weights."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.features import PIXELS
from invfusion.metrics.tools.frechet import frechet

FD_PIXEL8X8 = Metric(
    name="fd_pixel8x8",
    label="FD-px8",
    better="lower",
    main=True,
    needs=frozenset({"samples"}),
    values=PIXELS.of_images,
    source="pixels of images",
    reference=PIXELS.of_reference,
    against_others=True,
    statistic=frechet,
    nonnegative=True,
)
