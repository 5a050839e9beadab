"""The fraction of the error's energy that predicted principal directions hold."""

from torch import Tensor

from invfusion.codec import decode
from invfusion.metrics.base import Metric, Restorations
from invfusion.metrics.tools.components import captured_energy


def captured(restored: Restorations) -> Tensor:
    """Of each image, (n,) float64 in [0, 1]."""
    return captured_energy(restored.need("mean"), decode(restored.need("truth")), restored.need("components"))


NPPC_CAPTURED_ENERGY = Metric(
    name="nppc_captured_energy",
    label="captured energy",
    better="higher",
    needs=frozenset({"truth", "components"}),
    values=captured,
)
