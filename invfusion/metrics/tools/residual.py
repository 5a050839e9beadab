"""How far an image is from its measurement."""

from torch import Tensor

from invfusion.operators import Measurement


def squared_residual(x: Tensor, measurement: Measurement) -> Tensor:
    """The sum over measurement entries of (Hx - y)^2, (B,) float64.

    x: float images (B, C, H, W), neither clipped nor quantised.
    """
    return (measurement.operator.H(x) - measurement.y).double().flatten(1).square().sum(1)
