"""What published.safetensors holds: numbers that the published networks computed, and how their weights were drawn.

The networks are the published code's (noamelata/InvFusion at 0c4b915) at reduced width, one for each preset and
variant; none of that code is here. Their weights follow from a seed, so that only inputs and outputs have to be kept:
of every output each EVERY-th number.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from invfusion.models import Denoiser, DenoiserConfig
from invfusion.models.official import official_name
from invfusion.operators import LinearOperator, MaskOperator, MatrixOperator, Measurement, PublishedBlur

FILE = Path(__file__).with_name("published.safetensors")
EVERY = 5
SEED = 1
SHAPE = (3, 32, 32)
ROWS = (13, 9)

with safe_open(FILE, "pt") as _stored:
    NUMBERS: dict[str, Tensor] = {key: _stored.get_tensor(key) for key in _stored.keys()}  # noqa: SIM118
    _METADATA = _stored.metadata()
CASES: dict[str, DenoiserConfig] = {
    name: DenoiserConfig.model_validate(config) for name, config in json.loads(_METADATA["cases"]).items()
}
# Published names in the order in which weights were drawn.
ORDER: list[str] = json.loads(_METADATA["order"])


class Answer(NamedTuple):
    """Every EVERY-th number of the image, and the log-variances."""

    denoised: Tensor
    logvar: Tensor


def network(case: str) -> Denoiser:
    """Our network with the published one's weights."""
    denoiser = Denoiser(CASES[case])
    denoiser.load_state_dict(weights({official_name(k): v for k, v in denoiser.state_dict().items()}, denoiser))
    return denoiser.eval()


def weights(published: dict[str, Tensor], denoiser: Denoiser) -> dict[str, Tensor]:
    """Under our names, the weights that the published network had; `published` gives shapes and fixed numbers."""
    draw = torch.Generator().manual_seed(SEED)
    n_in, width = published["unet.patch_in.proj.weight"].numel(), published["unet.time_in_proj.weight"].numel()
    n_time = published["unet.time_emb.weight"].numel()
    drawn = dict(published)
    for name in ORDER:
        if name in published:
            drawn[name] = _parameter(name, torch.randn(published[name].shape, generator=draw))
    # The fixed features were drawn by the network's own constructor, between its first weights.
    n = sum(t.numel() for t in published.values())
    features = {
        "unet.time_emb.weight": (n_in, 1.0),
        "unet.aug_emb.weight": (n_in + n_time + width, 1.0),
        "logvar_fourier.freqs": (n - 722, 2 * math.pi),
    }
    for name, (offset, scale) in features.items():
        drawn[name] = scale * torch.randn(published[name].shape, generator=_advanced(offset))
    drawn["logvar_fourier.phases"] = 2 * math.pi * torch.rand(128, generator=_advanced(n - 722 + 128))
    return {name: drawn[official_name(name)] for name in denoiser.state_dict()}


def _advanced(offset: int) -> torch.Generator:
    draw = torch.Generator().manual_seed(SEED)
    torch.rand(offset, generator=draw)
    return draw


def _parameter(name: str, z: Tensor) -> Tensor:
    """Moved off the initial zeros and ones, as training would."""
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
    if "class_emb" in name:
        return z
    into_residual = "down_proj" in name or name.endswith("out_proj.weight")
    return (0.7 if into_residual else 1.0) * z / math.sqrt(z.shape[-1])


def operators() -> dict[str, LinearOperator | None]:
    """What the images were measured by."""
    mask = NUMBERS["mask"].float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    rows = torch.randn(2, 16, 3072, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = rows / rows.norm(dim=2, keepdim=True)
    for sample, n in enumerate(ROWS):
        rows[sample, n:] = 0
    return {
        "none": None,
        "mask": MaskOperator(SHAPE, mask),
        "matrix": MatrixOperator(SHAPE, rows.float()),
        "blur4": PublishedBlur(SHAPE, NUMBERS["kernel"], 4),
    }


def measurements() -> dict[str, Measurement | None]:
    """The published measurements."""
    return {
        name: None
        if operator is None
        else Measurement(NUMBERS[f"y/{name}"].view(2, *operator.measurement_shape), operator)
        for name, operator in operators().items()
    }


@torch.no_grad()
def answer(denoiser: Denoiser, measurement: Measurement | None) -> Answer:
    labels = NUMBERS["class_labels"] if denoiser.n_classes else None
    denoised, logvar, _ = denoiser(
        NUMBERS["x"], NUMBERS["sigma"], measurement, labels, NUMBERS["augment_labels"], return_logvar=True
    )
    return Answer(denoised.flatten()[::EVERY], logvar)
