"""The Wiener filter of a stationary law: what a measurement says of an image beyond the law's mean."""

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from invfusion.operators import Bayer, Blur, Downsampling, MaskOperator, Measurement
from invfusion.operators.iterative import Map, conjugate_gradients
from invfusion.restoration.refinement import LEAST_NOISE, NO_NOISE
from invfusion.restoration.stationary import Stationary
from invfusion.restoration.strips import Strips, around

# Of conjugate gradients, and the relative residuals from which on the images stay as they are.
MAX_ITERATIONS = 120
TOLERANCE = 3e-3
# The same where the preconditioner is nearly the inverse, so that each step counts.
FINE_TOLERANCE = 1e-5
# Power below which a spectrum is inverted in double precision, which takes twice as long: in single precision wide
# blurs with next to no noise did not converge.
LEAST_SINGLE = 4e-6
# Numbers of the strips' systems up to which these are worth their memory (0.8 GB) and time.
MOST_ENTRIES = 100_000_000
# Of the largest power: rounding has the smallest ones.
LEAST_POWER = 1e-10
# Missing pixels this far, on the average, from the nearest known one make holes.
FAR = 2.0
# Deviation in pixels of the bell by which missing pixels that lie one by one are interpolated to begin with.
NEAR = 1.5


def explained(law: Stationary, measurement: Measurement, gap: Tensor) -> Tensor:
    """C H^T (H C H^T + sigma_y^2)^-1 gap: (B, *M) -> (B, C, H, W)."""
    operator, n_axes = measurement.operator, len(measurement.operator.measurement_shape)
    if isinstance(operator, MaskOperator | Bayer):
        seen = operator.mask if isinstance(operator, MaskOperator) else operator.sensor[None]
        return _filled_in(law, seen, measurement.sigma_y, operator.H_adjoint(gap))
    if isinstance(operator, Blur) and operator.kernel.shape[1] == 1:
        return _deblurred(law, operator, measurement.sigma_y, gap)
    noise = _variances(measurement.sigma_y, n_axes)

    def system(u: Tensor) -> Tensor:
        return operator.H(law.filtered(operator.H_adjoint(u))) + noise * u

    if isinstance(operator, Downsampling):
        u = _solved(system, gap, n_axes, _coarse_inverse(law, operator, noise), FINE_TOLERANCE)
    else:
        u = _solved(system, gap, n_axes, _stationary_inverse(law, measurement, system), TOLERANCE)
    return law.filtered(operator.H_adjoint(u))


def _variances(sigma_y: Tensor, n_axes: int = 3) -> Tensor:
    """sigma_y^2 with n_axes more axes."""
    return _one_or_all(sigma_y).square().view(-1, *[1] * n_axes)


def _one_or_all(batch: Tensor) -> Tensor:
    """The first entry of a batch whose entries are all the same, so that systems are shared, else the batch."""
    return batch[:1] if bool((batch == batch[:1]).all()) else batch


def _stationary_inverse(law: Stationary, measurement: Measurement, system: Map) -> Map | None:
    """An approximate inverse of a system that is the same at every place, as of a blur that differs between channels.

    Its response to one bright entry in the middle is its spectrum, but for the borders. None where measurements are no
    pictures of the image's channels.
    """
    shape = measurement.operator.measurement_shape
    if len(shape) != 3 or shape[0] != len(law.colours):
        return None
    _, height, width = shape
    middle = (height // 2, width // 2)
    impulse = torch.zeros_like(measurement.y)
    impulse[..., middle[0], middle[1]] = 1
    responses = []
    for colour in law.colours:
        response = system(impulse * colour.view(-1, 1, 1))
        responses.append(torch.einsum("c,bchw->bhw", colour, response))
    # Faded out towards the borders by a window of positive spectrum, which leaves a positive one.
    faded = torch.stack(responses, dim=1) * torch.outer(*(_parzen(n, impulse) for n in (height, width)))
    spectrum = torch.fft.rfft2(faded.roll((-middle[0], -middle[1]), dims=(-2, -1))).real
    spectrum = spectrum.clamp(min=measurement.sigma_y.square().view(-1, 1, 1, 1) + 1e-8 * spectrum.amax((-2, -1), True))

    def inverse(r: Tensor) -> Tensor:
        z = torch.fft.rfft2(law.planes(r)) / spectrum
        return law.images(torch.fft.irfft2(z, s=(height, width)))

    return inverse


def _parzen(n: int, like: Tensor) -> Tensor:
    """A bell of n entries around n // 2 whose Fourier transform is nowhere negative. Source: Parzen 1961."""
    u = (torch.arange(n, device=like.device, dtype=like.dtype) - n // 2).abs() / (n / 2)
    return torch.where(u <= 0.5, 1 - 6 * u.square() * (1 - u), 2 * (1 - u).clamp(min=0) ** 3)


def _filled_in(law: Stationary, mask: Tensor, sigma_y: Tensor, gap: Tensor) -> Tensor:
    """`explained` for masks (1 or B, 1 or C, H, W), and gaps (B, C, H, W) that are zero where nothing is seen: the
    missing pixels, those beyond the image too, are what was not measured.
    """
    exact, whole = sigma_y < NO_NOISE, mask.bool().flatten(1).all(1).expand(len(gap))
    kinds = set(zip(exact.tolist(), whole.tolist(), strict=True))
    if len(kinds) == 1:
        # No copies of what may be one large picture.
        ((is_exact, is_whole),) = kinds
        return _filled_in_alike(law, mask, sigma_y, gap, exact=is_exact, whole=is_whole)
    found = torch.empty_like(gap)
    for is_exact, is_whole in sorted(kinds):
        rows = (exact == is_exact) & (whole == is_whole)
        masks = mask if len(mask) == 1 else mask[rows]
        found[rows] = _filled_in_alike(law, masks, sigma_y[rows], gap[rows], exact=is_exact, whole=is_whole)
    return found


def _filled_in_alike(
    law: Stationary, mask: Tensor, sigma_y: Tensor, gap: Tensor, *, exact: bool, whole: bool
) -> Tensor:
    """`_filled_in` where all of (B, C, H, W) are without noise, or none is, and see every pixel, or none does."""
    height, width = gap.shape[-2:]
    if exact and whole:
        return gap
    beyond = (0, law.size[1] - width, 0, law.size[0] - height)
    measured = nn.functional.pad(gap, beyond)
    noise = _variances(sigma_y.clamp(min=NO_NOISE)) * (not exact)
    power = law.spectrum + noise
    if whole:
        completed = _continued(law, power, measured, (height, width), (height, width))
    else:
        unknown = 1 - nn.functional.pad(mask, beyond)
        completed = _completed(law, power, measured, unknown, _stiffness(law, mask))
    if not exact:
        completed = law.filtered(completed, lambda S: S / (S + noise))
    return completed[..., :height, :width]


def _deblurred(law: Stationary, operator: Blur, sigma_y: Tensor, gap: Tensor) -> Tensor:
    """`explained` for blurs: what lies beyond the measured picture is what was not measured.

    So a solution that is not quite reached shows near the borders alone. Of a boundary that only imitates what lay
    beyond the image, the entries that it touched are left out.
    """
    noise = _variances(sigma_y.clamp(min=LEAST_NOISE))
    height, width = operator.image_shape[1:]
    (h, w), circular = operator.kernel.shape[-2:], operator.boundary == "circular"
    if circular:
        law = law.on(height, width)
    transfer = torch.fft.rfft2(_one_or_all(operator.kernel.float()), s=law.size)
    power = transfer.abs().square() * law.spectrum + noise
    if circular:
        measured = gap.roll((h // 2, w // 2), dims=(-2, -1))
    else:
        above, left = (0, 0) if operator.boundary == "valid" else (h - 1 - h // 2, w - 1 - w // 2)
        measured = gap.new_zeros(*gap.shape[:2], *law.size)
        inner = gap[..., above : above + height - h + 1, left : left + width - w + 1]
        measured[..., h - 1 : height, w - 1 : width] = inner
        measured = _continued(law, power, measured, (height, width), (height - h + 1, width - w + 1))
    wiener = law.spectrum * transfer.conj() / power
    return law.filtered(measured, lambda _: wiener)[..., :height, :width]


def _completed(law: Stationary, power: Tensor, measured: Tensor, unknown: Tensor, stiffness: Tensor) -> Tensor:
    """Measurements on the whole grid, which are zero where they are unknown (1), as the law K of measurements with this
    power spectrum continues them: z there solves N K^-1 N z = -N K^-1 measured, N keeping what is unknown.

    The Wiener filter of the whole grid, C H^T K^-1, then gives what the measured entries alone say.
    """

    def system(z: Tensor) -> Tensor:
        return unknown * law.filtered(unknown * z, lambda _: 1 / power)

    def precondition(r: Tensor) -> Tensor:
        return unknown * law.filtered(r, lambda _: power / (1 + stiffness * power))

    b = -unknown * law.filtered(measured, lambda _: 1 / power)
    # Holes are too wide for means of what lies around.
    is_near = stiffness > 0
    start = unknown * is_near * law.interpolated(measured, 1 - unknown, NEAR) if bool(is_near.any()) else None
    return measured + _solved(system, b, 3, precondition, TOLERANCE, start)


def _continued(law: Stationary, power: Tensor, measured: Tensor, end: tuple[int, int], n: tuple[int, int]) -> Tensor:
    """`_completed` where n = (rows, columns) are measured, all in a picture that `end` follows, and nothing beyond."""
    beyond = (law.size[0] - n[0], law.size[1] - n[1])
    if Strips.entries(power, law.size, beyond) > MOST_ENTRIES:
        return _completed(law, power, measured, around(law.size, end, beyond).to(power), power.new_zeros(1, 1, 1, 1))
    known = law.planes(measured)
    if bool(power.amin() < LEAST_SINGLE):
        power, known = power.double(), known.double()
    strips = Strips(1 / power, law.size, end, beyond)

    def system(z: Tensor) -> Tensor:
        return strips.around * strips.applied(z)

    z = _solved(system, -system(known), 3, strips.inverse, FINE_TOLERANCE)
    return measured + law.images(z.to(measured.dtype))


def _coarse_inverse(law: Stationary, operator: Downsampling, noise: Tensor) -> Map:
    """Of H C H^T + noise, but for what the filter leaves out at the borders of the image.

    On a torus, whose sides the factor divides, the smaller images have a power spectrum K, that of the filtered ones
    folded. With W for their pixels and N for the torus around them,
    (W K W)^-1 = W (K^-1 - K^-1 N (N K^-1 N)^-1 N K^-1) W.
    """
    factor, shape = operator.factor, operator.measurement_shape[1:]
    height, width = (n // factor for n in law.size)
    rows, columns = (
        torch.fft.fft(matrix[len(matrix) // 2].float(), n).abs().square()
        for matrix, n in zip(operator.matrices, law.size, strict=True)
    )
    filtered = law.spectrum * rows[:, None] * columns[: law.size[1] // 2 + 1]
    covariance = torch.fft.irfft2(filtered.double(), s=law.size)[..., ::factor, ::factor]
    power = (torch.fft.rfft2(covariance).real + noise).float()
    power = power.clamp(min=LEAST_POWER * power.amax((-3, -2, -1), keepdim=True))
    strips = Strips(1 / power, (height, width), (shape[0], shape[1]), (height - shape[0], width - shape[1]))

    def inverse(r: Tensor) -> Tensor:
        z = strips.applied(law.planes(r))
        z = z - strips.applied(strips.inverse(z))
        return law.images(z[..., : shape[0], : shape[1]])

    return inverse


def _solved(
    system: Map,
    b: Tensor,
    n_axes: int,
    precondition: Map | None,
    tolerance: float,
    start: Tensor | None = None,
) -> Tensor:
    return conjugate_gradients(
        system, b, n_axes, max_iterations=MAX_ITERATIONS, precondition=precondition, tolerance=tolerance, start=start
    ).value


def _stiffness(law: Stationary, mask: Tensor) -> Tensor:
    """What known pixels add to the precision of the missing ones around them, where these lie one by one: that of the
    waves that fit in between, four times as long as the distance to the nearest known pixel. Holes feel nothing of it.

    mask: (1 or B, 1 or C, H, W), of which the first channel is looked at; returns (1 or B, 1, 1, 1).
    """
    found = []
    for of_one in mask[:, 0]:
        distances = distance_transform_edt((of_one == 0).cpu().numpy())
        distance = float(distances[distances > 0].mean()) if bool((distances > 0).any()) else FAR
        wave = min(round(law.size[0] / (4 * distance)), law.size[0] // 2)
        found.append(float(1 / law.spectrum[0, wave, 0]) if distance < FAR else 0.0)
    return law.spectrum.new_tensor(found).view(-1, 1, 1, 1)
