"""Kernel distance over pixels averaged to 8x8."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.features import PIXELS
from invfusion.metrics.tools.frechet import kernel

KD_PIXEL8X8 = Metric(
    name="kd_pixel8x8",
    label="KD-px8",
    better="lower",
    needs=frozenset({"samples"}),
    values=PIXELS.of_images,
    source="pixels of images",
    reference=PIXELS.of_reference,
    against_others=True,
    statistic=kernel,
)
