"""Algorithms that turn noise into images, one per file. A new sampler is one file and one entry in `SamplerConfig`."""

from typing import Annotated, get_args

from pydantic import Field

from invfusion.samplers.aseq_dip import ASeqDIPConfig
from invfusion.samplers.base import SampleOutput, Sampler
from invfusion.samplers.daps import DAPSConfig
from invfusion.samplers.ddnm import DDNMConfig
from invfusion.samplers.ddrm import DDRMConfig, UnrolledDDRMConfig
from invfusion.samplers.dpmpp_2m import DPMpp2MConfig
from invfusion.samplers.dps import DPSConfig
from invfusion.samplers.heun import HeunConfig
from invfusion.samplers.indi import InDIConfig
from invfusion.samplers.mgps import MGPSConfig
from invfusion.samplers.mmse import MMSEConfig
from invfusion.samplers.nppc import NPPCConfig
from invfusion.samplers.pigdm import PiGDMConfig

_Members = (
    HeunConfig
    | DPMpp2MConfig
    | MMSEConfig
    | NPPCConfig
    | DDRMConfig
    | DDNMConfig
    | DPSConfig
    | PiGDMConfig
    | DAPSConfig
    | MGPSConfig
    | InDIConfig
    | UnrolledDDRMConfig
    | ASeqDIPConfig
)

SamplerConfig = Annotated[_Members, Field(discriminator="kind")]

SAMPLERS: dict[str, type[_Members]] = {member.model_fields["kind"].default: member for member in get_args(_Members)}

# Samples in 8 network calls, for any diffusion model.
FEW_STEP = DPMpp2MConfig(n_steps=8)

__all__ = [
    "FEW_STEP",
    "SAMPLERS",
    "ASeqDIPConfig",
    "DAPSConfig",
    "DDNMConfig",
    "DDRMConfig",
    "DPMpp2MConfig",
    "DPSConfig",
    "HeunConfig",
    "InDIConfig",
    "MGPSConfig",
    "MMSEConfig",
    "NPPCConfig",
    "PiGDMConfig",
    "SampleOutput",
    "Sampler",
    "SamplerConfig",
    "UnrolledDDRMConfig",
]
