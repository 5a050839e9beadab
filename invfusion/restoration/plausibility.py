"""Whether a measurement can have come from the operator and the noise level that are stated for it."""

import torch
from torch import Tensor

from invfusion.operators import LinearOperator, Measurement
from invfusion.rng import generator

# What a file of 8 bits rounds away, as a standard deviation: steps of 2 / 255, divided by sqrt(12).
QUANTISATION = 2 / 255 / 12**0.5
# The restored image may miss y by so many standard deviations of the noise, and by rounding: posterior means of
# photographs came to 0.2 to 0.8, draws to 1, and statements of a noise five times too low to 1.5 to 2.3.
TOO_MUCH = 1.3
# Root mean square of what lies outside of [-1, 1], of a mean and of a draw: with the right kernel means of photographs
# came to 0.006 at most; with one mirrored, or the boundary of another camera, to 0.035 to 0.26.
TOO_FAR_OUT = {"mean": 0.02, "draw": 0.06}


class MeasurementWarning(UserWarning):
    """The measurement does not look like one of this operator and noise level."""


def measured_entries(operator: LinearOperator) -> Tensor:
    """(B, *M) bool: the entries that depend on the image at all; a mask's missing ones do not."""
    probe = torch.randn(operator.image_shape, generator=generator(0, "restoration/measured_entries"))
    first = next(iter(operator.tensors().values()), probe)
    images = probe.to(first.device).expand(operator.batch_size, *operator.image_shape)
    return operator.H(images) != 0


def typical_over(values: Tensor, seen: Tensor) -> Tensor:
    """The standard deviation of values (B, *M) over the entries in `seen`, (B,), by their median size: few large ones,
    as at the borders of a picture whose boundary is only imitated, do not matter."""
    rows = [v[s].abs() for v, s in zip(values.flatten(1), seen.flatten(1), strict=True)]
    return torch.stack([1.4826 * row.median() if len(row) else values.new_zeros(()) for row in rows])


def rms_over(values: Tensor, seen: Tensor) -> Tensor:
    """Root mean square of values (B, *M) over the entries in `seen`, (B,); 0 where there are none."""
    total = (values * seen).flatten(1).square().sum(1)
    return (total / seen.flatten(1).sum(1).clamp(min=1)).sqrt()


def doubts(measurement: Measurement, mean: Tensor, typical: Tensor, *, of_draws: bool) -> tuple[str, ...]:
    """What speaks against y = Hx + sigma_y n, given the restored mean (B, C, H, W) and typical residuals (B,)."""
    found = []
    too_far = TOO_FAR_OUT["draw" if of_draws else "mean"]
    outside = (mean - mean.clamp(-1, 1)).flatten(1).square().mean(1).sqrt()
    for i, sigma_y in enumerate(measurement.sigma_y.tolist()):
        name = f"measurement {i}: " if len(mean) > 1 else ""
        allowed = TOO_MUCH * sigma_y + QUANTISATION
        if float(typical[i]) > allowed:
            found.append(
                f"{name}Hx differs from y by {float(typical[i]):.4g} (typically), where sigma_y = {sigma_y:.4g} "
                f"allows {allowed:.4g}: the operator, its boundary or the noise level is not that of the measurement"
            )
        if float(outside[i]) > too_far:
            found.append(
                f"{name}the restored values leave [-1, 1] by {float(outside[i]):.3g} (root mean square; pictures stay "
                f"below {too_far}): the operator is not that of the measurement, or sigma_y is too small"
            )
    return tuple(found)
