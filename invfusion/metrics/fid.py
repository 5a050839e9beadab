"""Frechet distance of the restored images to the true ones over Inception's features."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.features import INCEPTION, INCEPTION_FILE
from invfusion.metrics.tools.frechet import frechet

FID = Metric(
    name="fid",
    label="FID",
    better="lower",
    decimals=1,
    main=True,
    stand_in="fd_pixel8x8",
    needs=frozenset({"samples"}),
    values=INCEPTION.of_images,
    source="inception of images",
    reference=INCEPTION.of_reference,
    statistic=frechet,
    nonnegative=True,
    loader=INCEPTION.load,
    weights=INCEPTION_FILE,
)
