"""Frechet distance over pixels averaged to 8x8 of images made consistent with their measurements."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.features import PIXELS
from invfusion.metrics.tools.frechet import frechet

CFD_PIXEL8X8 = Metric(
    name="cfd_pixel8x8",
    label="CFD-px8",
    better="lower",
    main=True,
    needs=frozenset({"truth", "samples", "projected"}),
    values=PIXELS.of_projected,
    source="pixels of projected",
    reference=PIXELS.of_reference,
    against_others=True,
    statistic=frechet,
    nonnegative=True,
)
