"""Kernel distance of the restored images to the true ones over Inception's features."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.features import INCEPTION, INCEPTION_FILE
from invfusion.metrics.tools.frechet import kernel

KID = Metric(
    name="kid",
    label="KID",
    better="lower",
    stand_in="kd_pixel8x8",
    needs=frozenset({"samples"}),
    values=INCEPTION.of_images,
    source="inception of images",
    reference=INCEPTION.of_reference,
    statistic=kernel,
    loader=INCEPTION.load,
    weights=INCEPTION_FILE,
)
