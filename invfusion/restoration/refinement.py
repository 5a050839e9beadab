"""The network of `photos`: what a Gaussian posterior mean misses, learned for all operators at once.

Its features are degraded by the measurement's own operator, compared with y and projected back, as in the feature
degradation layer of the paper (section 3, Figure 2); the trunk is a convolutional hourglass, for the sake of CPUs.
"""

import math
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from invfusion.errors import CheckpointError
from invfusion.operators import Bayer, Blur, Downsampling, Grayscale, LinearOperator, MaskOperator, Measurement
from invfusion.restoration.tiles import Window, blended, evenly, factor_of, local_rule, usual_tile

FILE = Path(__file__).with_name("photos.safetensors")
COLOURS = 3
# Pixels along one side of the finest tokens.
PATCH = 2
# Features at the three resolutions, each half of the one before, and blocks before and after what is coarser.
WIDTHS, DEPTHS = (64, 128, 256), (3, 2, 2)
# Images that the operator degrades within the network.
STACK = 4
# Images that the network reads: the Gaussian estimate, how far y is from it, what H sees; and the noise level.
N_INPUTS = 3 * COLOURS + 1
# Images are padded to multiples of this many pixels.
MULTIPLE = PATCH * 2 ** (len(WIDTHS) - 1)
# Noise below this level, half a grey level of 255, is as good as none.
LEAST_SIGMA_Y = 0.004
# What was learned from: noise up to this, reduction by up to this factor.
MOST_NOISE, MOST_REDUCED = 0.4, 4
# Noise that counts as next to none, two thirds of a grey level of 255; the least that blurs have, whose inverse without
# any is not finite; and how far off the network's pixels are.
NO_NOISE, LEAST_NOISE, OFF = 0.005, 1e-3, 0.03
# Pixels that neighbouring tiles share. What the network gives for a pixel hardly depends on what is further away than
# half of it: the Gaussian estimate, which is of the whole picture, has told it.
SHARED = 64


class Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) -> the same."""
        out: Tensor = x + self.second(F.relu(self.first(x)))
        return out


def blocks(level: int) -> nn.Sequential:
    """The blocks of one level."""
    return nn.Sequential(*(Block(WIDTHS[level]) for _ in range(DEPTHS[level])))


class Degradation(nn.Module):
    """The paper's feature degradation layer with a scaled H^T in place of H_pinv, so that no operator iterates for it.

    Features (B, width, h, w) are read as a stack of images, degraded, compared with y and projected back.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        n_features = STACK * COLOURS * PATCH**2
        self.images_of = nn.Conv2d(width, n_features, 1)
        self.mix = nn.Linear(STACK + 1, STACK)
        self.features_of = nn.Conv2d(n_features, width, 1)

    def forward(self, x: Tensor, measurement: Measurement, strength: Tensor) -> Tensor:
        """(B, width, h, w) -> the same, to be added; strength: `strength_of` what its operator sees."""
        operator, y = measurement.operator, measurement.y
        channels, height, width = operator.image_shape
        with torch.autocast(x.device.type, enabled=False):
            images = rearrange(
                self.images_of(x.float()), "b (k c p q) h w -> b k c (h p) (w q)", k=STACK, c=COLOURS, p=PATCH
            )
            beyond = (0, images.shape[-1] - width, 0, images.shape[-2] - height)
            # A grey picture's operator acts on each colour of the features by itself.
            planes = images[..., :height, :width].reshape(len(x), -1, channels, height, width)
            z = operator.H(planes)
            seen = torch.cat((y.flatten(1).repeat(1, COLOURS // channels)[:, None], z.reshape(len(x), STACK, -1)), 1)
            mixed = F.gelu(torch.matmul(self.mix.weight, seen) + self.mix.bias[:, None])
            back = operator.H_adjoint(mixed.view(z.shape)) / strength[:, None]
            images = F.pad(back.reshape(len(x), STACK, COLOURS, height, width), beyond)
            tokens = rearrange(images, "b k c (h p) (w q) -> b (k c p q) h w", p=PATCH, q=PATCH)
            features: Tensor = self.features_of(tokens)
            return features


class Refiner(nn.Module):
    """From the Gaussian posterior mean (B, C, H, W) of a measurement to a better estimate; any H and W, C is 1 or 3."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.read = nn.Conv2d(N_INPUTS * PATCH**2, fine, 3, padding=1)
        self.down_fine, self.up_fine = blocks(0), blocks(0)
        self.down_middle, self.up_middle = blocks(1), blocks(1)
        self.coarse = nn.Sequential(blocks(2), Block(coarse))
        self.merge_fine = nn.Conv2d(fine, middle, 2, stride=2)
        self.merge_middle = nn.Conv2d(middle, coarse, 2, stride=2)
        self.split_middle = nn.Conv2d(coarse, 4 * middle, 1)
        self.split_fine = nn.Conv2d(middle, 4 * fine, 1)
        self.degradation = Degradation(fine)
        self.write = nn.Conv2d(fine, COLOURS * PATCH**2, 3, padding=1)
        # Before anything is learned, the estimate is the Gaussian one.
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)  # type: ignore[arg-type]

    def forward(self, estimate: Tensor, measurement: Measurement) -> Tensor:
        """estimate: E[x | y] of the Gaussian, (B, C, H, W) float32."""
        seen = seen_by(measurement.operator)
        strength = strength_of(seen)
        x = F.pixel_unshuffle(padded(inputs(estimate, measurement, seen / strength, strength)), PATCH)
        with nullcontext() if self.training else fast_products(x.device.type):
            learned = self._convolved(x.contiguous(memory_format=torch.channels_last), measurement, strength).float()
        learned = F.pixel_shuffle(learned, PATCH)[..., : estimate.shape[-2], : estimate.shape[-1]]
        if estimate.shape[1] == 1:
            learned = learned.mean(1, keepdim=True)
        return estimate + left_open(learned, measurement)

    def _convolved(self, x: Tensor, measurement: Measurement, strength: Tensor) -> Tensor:
        fine = self.down_fine(self.read(x))
        middle = self.down_middle(self.merge_fine(fine))
        coarse = self.coarse(self.merge_middle(middle))
        middle = self.up_middle(middle + F.pixel_shuffle(self.split_middle(coarse), 2))
        fine = fine + F.pixel_shuffle(self.split_fine(middle), 2)
        fine = self.up_fine(fine + self.degradation(fine, measurement, strength))
        out: Tensor = self.write(fine)
        return out


def fast_products(device_type: str) -> torch.autocast:
    """Convolutions in bfloat16 where the device has units for it: twice as fast there and many times slower elsewhere;
    pictures differ by less than a grey level, typically by a sixteenth of one."""
    return torch.autocast(device_type, torch.bfloat16, enabled=multiplies_bf16(device_type))


@cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether the device has units for products in bfloat16."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # An older torch does not say what a processor has.
    units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device_type == "cpu" else {}
    return any(units.get(name) for name in ("avx512_bf16", "amx_bf16"))


def inputs(estimate: Tensor, measurement: Measurement, seen: Tensor, strength: Tensor) -> Tensor:
    """What the network reads, (B, N_INPUTS, H, W); seen: `seen_by` over its strength."""
    operator = measurement.operator
    gap = operator.H_adjoint(measurement.y - operator.H(estimate)) / strength
    level = measurement.sigma_y.clamp(min=LEAST_SIGMA_Y).log() / math.log(LEAST_SIGMA_Y)
    plane = level.view(-1, 1, 1, 1).expand(len(estimate), 1, *estimate.shape[2:])
    images = (p.expand(-1, COLOURS, -1, -1) for p in (estimate, 4 * gap, seen.expand_as(estimate)))
    return torch.cat((*images, plane), dim=1)


def seen_by(operator: LinearOperator) -> Tensor:
    """How much of each pixel an operator sees: H^T H of a white image, (B, C, H, W)."""
    white = torch.ones(operator.batch_size, *operator.image_shape, device=operator.device)
    return operator.H_adjoint(operator.H(white))


def strength_of(seen: Tensor) -> Tensor:
    """The most that is `seen_by` an operator of any pixel, by which what H^T gives is divided, (B, 1, 1, 1)."""
    return seen.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-3)


def left_open(learned: Tensor, measurement: Measurement) -> Tensor:
    """What is learned, (B, C, H, W), without the pixels that a mask shows as they are."""
    if not isinstance(measurement.operator, MaskOperator):
        return learned
    exact = (measurement.sigma_y == 0).view(-1, 1, 1, 1)
    return torch.where(exact, learned * (1 - measurement.operator.mask), learned)


def padded(x: Tensor) -> Tensor:
    """(B, C, H, W) with its last rows and columns repeated up to multiples of MULTIPLE."""
    return F.pad(x, (0, -x.shape[-1] % MULTIPLE, 0, -x.shape[-2] % MULTIPLE), mode="replicate")


def knows(measurement: Measurement) -> Tensor:
    """Whether measurements of this kind were learned from, (B,): the operator, its factor, and the noise's level."""
    operator = measurement.operator
    reduced = getattr(operator, "factor", 1)
    kinds = MaskOperator, Blur, Downsampling, Bayer, Grayscale
    return (measurement.sigma_y <= MOST_NOISE) & (isinstance(operator, kinds) and reduced <= MOST_REDUCED)


def refined(estimate: Tensor, measurement: Measurement) -> Tensor:
    """The network's estimate from the Gaussian one, (B, C, H, W); of large images by tiles, which bounds memory."""
    network, rule = load_refiner().to(estimate.device), local_rule(measurement)
    image = (estimate.shape[-2], estimate.shape[-1])
    multiple = math.lcm(MULTIPLE, factor_of(measurement))
    side = usual_tile(measurement)
    is_small = image[0] * image[1] <= side**2
    tile = image if rule is None or is_small else evenly(side, multiple, image, SHARED)

    def of_tile(tile: Tensor, window: Window) -> Tensor:
        assert rule is not None
        better: Tensor = network(tile, rule(measurement, window))
        return better

    with torch.no_grad():
        better = network(estimate, measurement) if tile == image else blended(estimate, tile, multiple, of_tile, SHARED)
        return true_to_y(better, measurement)


def true_to_y(x: Tensor, measurement: Measurement) -> Tensor:
    """Images (B, C, H, W) in line with y where it has next to no noise.

    x + H^T (H H^T + sigma_y^2 / OFF^2)^-1 (y - Hx): the Wiener filter of white errors of the size OFF.
    """
    operator, sigma_y = measurement.operator, measurement.sigma_y
    quiet = sigma_y < NO_NOISE
    if not bool(quiet.any()):
        return x
    level = (sigma_y.clamp(min=LEAST_NOISE) / OFF).square()
    moved = x + operator.H_adjoint(operator.damped_inverse(measurement.y - operator.H(x), level))
    return torch.where(quiet.view(-1, 1, 1, 1), moved, x)


@cache
def load_refiner() -> Refiner:
    """The shipped network, one for all callers. Raises `CheckpointError`."""
    model = read_refiner(FILE).eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def read_refiner(file: Path) -> Refiner:
    """A network of one's own from its file. Raises `CheckpointError` where the file is missing or damaged."""
    model = Refiner()
    try:
        model.load_state_dict({name: t.float() for name, t in load_file(file).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); install invfusion again") from error
    return model
