"""How well an image explains its measurement, in the units of the measurement."""

from torch import Tensor

from invfusion.operators import Measurement


def consistency_sse(x: Tensor, measurement: Measurement) -> Tensor:
    """The sum over measurement entries of (Hx - y)^2, (B,) float64: what the paper's Table 10 reports."""
    return _residual(x, measurement).square().sum(1)


def consistency_mse(x: Tensor, measurement: Measurement) -> Tensor:
    """The mean over measurement entries of (Hx - y)^2, (B,) float64; 0 for a measurement without entries.

    x: float images (B, C, H, W), neither clipped nor quantised.
    """
    residual = _residual(x, measurement)
    return residual.square().sum(1) / max(residual.shape[1], 1)


def _residual(x: Tensor, measurement: Measurement) -> Tensor:
    return (measurement.operator.H(x) - measurement.y).double().flatten(1)
