"""Perceptual distance to the truth, by a pretrained network."""

from invfusion.metrics.base import Metric
from invfusion.metrics.tools.lpips import ALEXNET_FILE, LPIPS

LPIPS_DISTANCE = Metric(
    name="lpips",
    label="LPIPS",
    better="lower",
    needs=frozenset({"truth", "samples"}),
    values=lambda restored: restored.networks.load(LPIPS)(restored.images, restored.need("truth")),
    loader=LPIPS,
    weights=ALEXNET_FILE,
)
