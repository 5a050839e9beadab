"""How well an image explains its measurement, per entry of the measurement."""

from torch import Tensor

from invfusion.metrics.base import Metric, Restorations


def consistency_mse(restored: Restorations) -> Tensor:
    """The mean over measurement entries of (Hx - y)^2, (n,) float64; 0 for a measurement without entries."""
    return restored.need("residual") / restored.need("n_measured").clamp(min=1)


CONSISTENCY_MSE = Metric(
    name="consistency_mse",
    label="cons.·10³",
    better="lower",
    scale=1000.0,
    main=True,
    needs=frozenset({"residual"}),
    values=consistency_mse,
)
