"""How well an image explains its measurement, in all: what the paper's Table 10 reports."""

from invfusion.metrics.base import Metric

# The sum over measurement entries of (Hx - y)^2 of the float image.
CONSISTENCY_SSE = Metric(
    name="consistency_sse",
    label="cons. sum",
    better="lower",
    needs=frozenset({"residual"}),
    values=lambda restored: restored.need("residual"),
)
