"""Algorithms that turn noise into images, one per file. A new sampler is one file and one entry in `SamplerConfig`."""

from typing import Annotated, get_args

from pydantic import Field

from invfusion.samplers.base import SampleOutput, Sampler
from invfusion.samplers.ddrm import DDRMConfig
from invfusion.samplers.heun import HeunConfig
from invfusion.samplers.mmse import MMSEConfig
from invfusion.samplers.nppc import NPPCConfig

_Members = HeunConfig | MMSEConfig | NPPCConfig | DDRMConfig

SamplerConfig = Annotated[_Members, Field(discriminator="kind")]

SAMPLERS: dict[str, type[_Members]] = {member.model_fields["kind"].default: member for member in get_args(_Members)}

__all__ = [
    "SAMPLERS",
    "DDRMConfig",
    "HeunConfig",
    "MMSEConfig",
    "NPPCConfig",
    "SampleOutput",
    "Sampler",
    "SamplerConfig",
]
