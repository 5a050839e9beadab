"""Frechet distance over Inception's features of images made consistent with their measurements: the paper's CFID."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.features import INCEPTION, INCEPTION_FILE
from invfusion.metrics.tools.frechet import frechet

CFID = Metric(
    name="cfid",
    label="CFID",
    better="lower",
    decimals=1,
    main=True,
    stand_in="cfd_pixel8x8",
    needs=frozenset({"truth", "samples", "projected"}),
    values=INCEPTION.of_projected,
    source="inception of projected",
    reference=INCEPTION.of_reference,
    statistic=frechet,
    nonnegative=True,
    loader=INCEPTION.load,
    weights=INCEPTION_FILE,
)
