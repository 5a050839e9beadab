"""What published.safetensors holds: inputs and outputs of the published networks, and how their weights were drawn.

The networks are the published code's (noamelata/InvFusion at 78ee7b4), run in float32, one for each preset and variant:
its patches, levels, neighbourhoods, classes and InvFusion blocks, at reduced widths. Its operators made the
measurements of `image`, and blurred with kernels whose spectra keep off the cut-offs by more than rounding. None of
that code is here; the unfused neighbourhood attention that it calls, which NATTEN no longer has, was computed densely.
Weights follow from a seed; of every image that came out each EVERY-th number is kept.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from invfusion.models import PRESETS, Denoiser, DenoiserConfig
from invfusion.models.config import Variant
from invfusion.models.official import official_name
from invfusion.models.presets import denoiser_config
from invfusion.operators import LinearOperator, MaskOperator, MatrixOperator, Measurement, PublishedBlur

EVERY = 5
SEED = 1
ROWS = 16
STRIDES = (2, 4, 8)
SIDES = (32, 64)
VARIANTS: tuple[Variant, ...] = ("unconditional", "palette", "invfusion")
NUMBERS: dict[str, Tensor] = load_file(Path(__file__).with_name("published.safetensors"))


class Reduced(NamedTuple):
    """What a network has instead of its preset's: side of the images, and widths and depths of the levels."""

    side: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]


# The features of their levels form 2, 1, 1; 4, 2, 1 and 2, 1, 1, 0 images. A third level of 768 features is the least
# that patches of 4 allow, so it has one layer each way; all other depths are the presets'.
REDUCED = {
    "ffhq64": Reduced(32, (24, 48, 192), (2, 2, 8)),
    "imagenet64": Reduced(32, (48, 96, 192), (2, 2, 8)),
    "ffhq256": Reduced(64, (96, 192, 768, 96), (2, 2, 1, 2)),
}


class Answer(NamedTuple):
    """Every EVERY-th number of the image, and the log-variances."""

    denoised: Tensor
    logvar: Tensor


def config(preset: str, variant: Variant) -> DenoiserConfig:
    """The preset, reduced."""
    base, reduced = PRESETS[preset], REDUCED[preset]
    sizes = zip(base.levels, reduced.widths, reduced.depths, strict=True)
    return denoiser_config(
        base,
        variant,
        image_size=reduced.side,
        levels=tuple(level.model_copy(update={"width": width, "depth": depth}) for level, width, depth in sizes),
        head_dim=24,
        mapping_width=64,
        mapping_hidden=192,
        n_classes=min(base.n_classes, 10),
    )


def network(preset: str, variant: Variant) -> Denoiser:
    """Our network with the published one's weights."""
    denoiser = Denoiser(config(preset, variant))
    denoiser.load_state_dict(weights(denoiser.state_dict()))
    return denoiser.eval()


def weights(initial: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drawn in the order of their published names, under ours; `initial` gives shapes, and the rotary frequencies."""
    draw = torch.Generator().manual_seed(SEED)
    return {
        name: initial[name] if name.endswith("rope.frequencies") else _drawn(official_name(name), initial[name], draw)
        for name in sorted(initial, key=official_name)
    }


def _drawn(name: str, like: Tensor, draw: torch.Generator) -> Tensor:
    """Moved off the initial zeros and ones, as training would."""
    z = torch.randn(like.shape, generator=draw)
    if name.startswith("logvar_fourier"):
        return 2 * math.pi * z
    if name.endswith("self_attn.scale"):
        return 10 * torch.exp(0.3 * z)
    if name.endswith(".scale"):
        return 1 + 0.3 * z
    if name.endswith(".fac"):
        return 0.5 + 0.2 * z
    if name.endswith(".bias"):
        return 0.3 * z
    if "norm.linear" in name:
        return 0.05 * z
    if "_emb." in name:
        return z
    into_residual = "down_proj" in name or name.endswith("out_proj.weight")
    return (0.2 if into_residual else 1.0) * z / math.sqrt(z.shape[-1])


def operators(side: int) -> dict[str, LinearOperator]:
    """What the images were measured by."""
    shape = (3, side, side)
    mask = NUMBERS[f"{side}/mask"].float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    rows = torch.randn(2, ROWS, 3 * side**2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = rows / rows.norm(dim=2, keepdim=True)
    for sample, n in enumerate(NUMBERS[f"{side}/rows"]):
        rows[sample, n:] = 0
    blurs = {f"blur{s}": PublishedBlur(shape, NUMBERS[f"{side}/kernel{s}"], s) for s in STRIDES}
    return {"mask": MaskOperator(shape, mask), "matrix": MatrixOperator(shape, rows.float()), **blurs}


def measurements(side: int) -> dict[str, Measurement]:
    """The published measurements."""
    return {
        name: Measurement(NUMBERS[f"{side}/y/{name}"].view(2, *operator.measurement_shape), operator)
        for name, operator in operators(side).items()
    }


@torch.no_grad()
def answer(denoiser: Denoiser, measurement: Measurement | None) -> Answer:
    x = NUMBERS[f"{denoiser.config.image_size}/x"]
    labels = NUMBERS["class_labels"] if denoiser.n_classes else None
    denoised, logvar, _ = denoiser(
        x, NUMBERS["sigma"], measurement, labels, NUMBERS["augment_labels"], return_logvar=True
    )
    return Answer(denoised.flatten()[::EVERY], logvar)
